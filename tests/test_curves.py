"""curves.png: which panels there are, what stands on them, and where every point is."""

import json

import pytest
from matplotlib import pyplot as plt
from PIL import Image

from runtime.curves import draw_curves, smooth

# title: (what the vertical axis is called, {metric: what the legend calls it})
PANELS = {
    "loss": ("loss (nats)", {"loss": "training", "eval/loss": "held-out"}),
    "held-out accuracy": (
        "pairs ranked rightly",
        {"eval/accuracy": "accuracy", "eval/accuracy_norm": "per character"},
    ),
    "rewards": (
        "score or implicit reward",
        {"rewards/chosen": "chosen", "rewards/rejected": "rejected"},
    ),
    "log-probability of the response": (
        "nats, summed over tokens",
        {"logps/chosen": "chosen", "logps/rejected": "rejected"},
    ),
    "score of the sampled responses": (
        "score",
        {"objective/scores": "training prompts", "eval/reward": "held-out prompts"},
    ),
    "KL to the reference, per response": (
        "nats",
        {"objective/kl": "training prompts", "eval/kl": "held-out prompts"},
    ),
    "policy against the rollout's": (
        "mean over tokens",
        {"policy/approxkl_avg": "approximate KL", "policy/clipfrac_avg": "clipped share"},
    ),
    "gradient norm": ("L2 norm", {"grad_norm": "before clipping"}),
    "learning rate": ("per step", {"learning_rate": "learning rate"}),
}
METRICS = [name for _, curves in PANELS.values() for name in curves]
COLORS = ("tab:blue", "tab:orange")
STEPS = 45  # half of the smoothing's window is 2 steps


def value(name, step):
    return METRICS.index(name) + (step % 7) / 7


def rows_of(names, steps=STEPS):
    """Training metrics at every step from 1, held-out ones at every fifth from 0."""
    rows = []
    for step in range(steps + 1):
        for heldout in (False, True):
            mine = [n for n in names if n.startswith("eval/") == heldout]
            if mine and (step % 5 == 0 if heldout else step):
                rows.append({"step": step} | {name: value(name, step) for name in mine})
    return rows


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draw these rows: (the figure, the picture's file)."""
    closed = []
    monkeypatch.setattr(plt, "close", closed.append)

    def draw(rows, title="a title"):
        metrics, picture = tmp_path / "metrics.jsonl", tmp_path / "curves.png"
        metrics.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        draw_curves(metrics, picture, title)
        (figure,) = closed
        return figure, picture

    yield draw
    monkeypatch.undo()
    plt.close("all")


def described(line):
    return (
        line.get_color(),
        line.get_label() if not line.get_label().startswith("_") else None,
        (line.get_marker(), line.get_linestyle(), line.get_zorder()),
        (line.get_alpha(), line.get_linewidth()),
        list(zip(*line.get_data(), strict=True)),
    )


def expected_lines(curves):
    """A training curve is faint, its smoothed one is not; held-out ones are points on a line."""
    lines, plain, width = [], ("None", "-", 2), plt.rcParams["lines.linewidth"]
    for color, (name, label) in zip(COLORS, curves.items(), strict=False):
        heldout = name.startswith("eval/")
        steps = range(0, STEPS + 1, 5) if heldout else range(1, STEPS + 1)
        points = [(step, value(name, step)) for step in steps]
        if heldout:
            lines.append((color, label, ("o", "-", 3), (None, width), points))
        elif name == "learning_rate":
            lines.append((color, None, plain, (None, width), points))
        else:
            lines.append((color, None, plain, (0.3, 1), points))
            means = zip(steps, smooth([y for _, y in points]), strict=True)
            lines.append((color, label, plain, (None, width), list(means)))
    return lines


@pytest.mark.parametrize("other", ["gradient norm", "learning rate"])
def test_every_metric_has_its_panel_and_every_value_its_place(drawn, other):
    titles = [title for title in PANELS if title != other]  # an even number
    names = [name for title in titles for name in PANELS[title][1]]
    figure, picture = drawn(rows_of(names), title="python train.py")
    assert [axis.get_title() for axis in figure.axes] == titles
    for axis in figure.axes:
        unit, curves = PANELS[axis.get_title()]
        assert (axis.get_xlabel(), axis.get_ylabel()) == ("optimizer step", unit)
        assert axis.title.get_fontsize() == 11
        assert [described(line) for line in axis.lines] == expected_lines(curves)
        assert {line.get_alpha() for line in axis.get_xgridlines()} == {0.3}
        legend = axis.get_legend()
        assert (legend is not None) == (len(curves) > 1)
        if legend:
            assert [text.get_text() for text in legend.get_texts()] == list(curves.values())
            assert {text.get_fontsize() for text in legend.get_texts()} == {9}
            assert not legend.get_frame_on()
    title = figure._suptitle
    assert (title.get_text(), title.get_fontsize()) == ("python train.py", 9)
    assert title.get_wrap()
    assert figure.get_size_inches().tolist() == pytest.approx([10, 4 * 2.9])
    with Image.open(picture) as image:
        assert image.size == (1100, 1276)


def test_there_are_two_panels_a_row_and_a_last_odd_one_is_left_out(drawn):
    names = ["loss", "eval/loss", "eval/accuracy", "eval/accuracy_norm", "grad_norm"]
    figure, _ = drawn(rows_of([*names, "learning_rate"]))
    assert [axis.get_title() for axis in figure.axes] == [
        *("loss", "held-out accuracy", "gradient norm", "learning rate"),
    ]
    plt.close(figure)


def test_an_odd_panel_is_left_out(drawn):
    figure, _ = drawn(rows_of(["loss", "rewards/chosen", "grad_norm"]))
    assert [axis.get_title() for axis in figure.axes] == ["loss", "rewards"]
    assert figure.axes[1].get_legend_handles_labels()[1] == ["chosen"]
    assert [line.get_color() for line in figure.axes[0].lines] == ["tab:blue"] * 2


def test_a_value_that_was_not_finite_leaves_a_gap(drawn):
    """metrics.jsonl has null for it."""
    rows = [{"step": 1, "loss": 1.0, "grad_norm": None}, {"step": 2, "loss": 3.0, "grad_norm": 2.0}]
    figure, _ = drawn(rows)
    assert [list(line.get_xdata()) for line in figure.axes[1].lines] == [[2], [2]]


def test_a_second_metric_alone_keeps_its_color(drawn):
    figure, _ = drawn(rows_of(["rewards/rejected", "grad_norm"]))
    assert {line.get_color() for line in figure.axes[0].lines} == {"tab:orange"}


def test_the_smoothed_curve_is_a_mean_of_a_tenth_around_each_point():
    assert smooth([1.0, 2.0, 6.0, 4.0]) == [1.5, 3.0, 4.0, 5.0]
    line = [float(x) for x in range(60)]  # three points on each side
    assert smooth(line)[3:-3] == line[3:-3]
    assert smooth(line)[:2] == [1.5, 2.0] and smooth(line)[-1] == 57.5
    impulse = [0.0] * 30 + [7.0] + [0.0] * 29
    assert smooth(impulse) == [0.0] * 27 + [1.0] * 7 + [0.0] * 26


@pytest.mark.parametrize("title", ["rows of a$b^$c.jsonl", r"$\alpha$", "a_b^c"])
def test_a_title_is_text_and_no_formula(drawn, title):
    figure, _ = drawn(rows_of(["loss", "grad_norm"]), title)
    (text,) = figure.texts
    shown, is_math = text._preprocess_math(text.get_text())
    assert (shown, is_math) == (title, False)
