"""docs/: the curves drawn are the formulas', and the links lead where they say."""

import json
from functools import cache

import pytest
import torch
from PIL import Image
from runs import ROOT
from tolerances import assert_close

from benchmarks import links
from benchmarks.figures import curves
from benchmarks.figures.__main__ import FIGURES, main
from benchmarks.figures.style import look, panels, save

DRAWN = [name for name in FIGURES if name not in curves.CURVES]


@cache
def drawn(name):
    return FIGURES[name]()


def lines(name, panel):
    """{label: (x, y)} of one panel's curves, as matplotlib was given them."""
    return {
        line.get_label(): tuple(torch.tensor(z, dtype=torch.float64) for z in line.get_data())
        for line in drawn(name).axes[panel].get_lines()
        if not line.get_label().startswith("_")
    }


def number(label):
    """The parameter that a label names: 'β = 0.1', 'margin 3'."""
    return float(label.replace("=", " ").split()[-1])


def check(name, panel, formula):
    """Every curve of the panel is formula(x, its parameter), to twelve digits of its size."""
    found = lines(name, panel)
    assert found
    for label, (x, y) in found.items():
        expected = formula(x, number(label))
        assert_close(y, expected, scale=torch.ones_like(y) + expected.abs())


# ------------------------------------------------------- what is drawn, against the formulas


def test_sft():
    ((p, loss),) = lines("sft", 0).values()
    by_logp, by_logit = lines("sft", 1).values()
    assert_close(loss, -p.log(), scale=torch.full_like(p, 10.0))
    assert_close(by_logp[1], torch.ones_like(p))
    assert_close(by_logit[1], 1 - p, scale=torch.ones_like(p))


def test_reward():
    check("reward", 0, lambda gap, m: torch.log1p(torch.exp(m - gap)))
    check("reward", 1, lambda gap, m: 1 / (1 + torch.exp(gap - m)))


def test_dpo():
    check("dpo-beta", 0, lambda h, beta: torch.log1p(torch.exp(-beta * h)))
    check("dpo-beta", 1, lambda h, beta: beta / (1 + torch.exp(beta * h)))


def test_dpo_variants():
    """As shares of the weight at h = 0. At β = 0.1, ipo is 0 at h = 5, and the hinge from 10 on."""
    wrong = {
        label: 1 / (1 + torch.exp(0.1 * h)) for label, (h, _) in lines("dpo-variants", 1).items()
    }
    for label, (h, weight) in lines("dpo-variants", 1).items():
        w = wrong[label]
        expected = {
            "sigmoid (DPO)": 2 * w,
            "sigmoid, ε = 0.1 (cDPO)": (0.9 * w - 0.1 * (1 - w)) / 0.4,
            "robust, ε = 0.1": 0.9 * 2 * w + 0.1 * 2 * (1 - w),
            "ipo": 1 - h / 5,
            "hinge": (h < 10).double(),
        }[label]
        away = (h - 10).abs() > 0.01  # from the hinge's corner
        assert_close(weight[away], expected[away], scale=torch.full_like(h, 10.0)[away])


def test_orpo():
    def push_up(p_w, p_l):
        odds = p_l / (1 - p_l)
        return 1 + 0.1 * odds / (p_w + odds * (1 - p_w))

    def push_down(p_l, p_w):
        odds = p_l / (1 - p_l)
        return 0.1 * odds / (p_w / (1 - p_w) + odds) / (1 - p_l)

    p, log_odds = lines("orpo", 0)["log odds(p)"]
    assert_close(log_odds, (p / (1 - p)).log(), scale=torch.full_like(p, 10.0))
    (z, penalty), (_, weight) = lines("orpo", 1).values()
    assert_close(penalty, torch.log1p(torch.exp(-z)), scale=torch.full_like(z, 10.0))
    assert_close(weight, 1 / (1 + torch.exp(z)), scale=torch.full_like(z, 10.0))
    for panel, formula in ((2, push_up), (3, push_down)):
        for label, (p, push) in lines("orpo", panel).items():
            other = float(label.split("= ")[1])
            expected = formula(p, other)
            assert_close(push, expected, scale=100 * expected)


def test_simpo():
    for panel in (0, 1):
        for label, (d, y) in lines("simpo", panel).items():
            beta, gamma = (float(part.split()[-1]) for part in label.split(","))
            missing = gamma - beta * d
            loss, weight = torch.log1p(torch.exp(missing)), beta / (1 + torch.exp(-missing))
            expected = (loss, weight)[panel]
            assert_close(y, expected, scale=1 + expected.abs())


@pytest.mark.parametrize("panel, advantage", [(0, 1.0), (2, -1.0)])
def test_ppo(panel, advantage):
    """A > 0 gains up to 1.2 and not beyond, A < 0 down to 0.8; the other side is not clipped."""
    # the two panels of a sign are neighbours: value and gradient above, value and gradient below
    ratio, objective = lines("ppo", panel)["clipped objective"]
    _, slope = lines("ppo", panel + 1)["clipped"]
    gained = ratio > 1.2 if advantage > 0 else ratio < 0.8
    edge = 1.2 if advantage > 0 else -0.8
    assert_close(objective, torch.where(gained, edge, advantage * ratio), scale=10 * ratio)
    away = (ratio - abs(edge)).abs() > 1e-6
    expected = torch.where(gained, 0.0, advantage * ratio)
    assert_close(slope[away], expected[away], scale=10 * ratio[away])


def test_ppo_value():
    for label, (v, slope) in lines("ppo-value", 1).items():
        target = number(label)
        stopped = (v > 0.2) if target > 0.2 else torch.zeros_like(v, dtype=torch.bool)
        away = (v - 0.2).abs() > 1e-6
        expected = torch.where(stopped, 0.0, v - target)
        assert_close(slope[away], expected[away], scale=torch.ones_like(v)[away])


def test_gae():
    check("gae", 0, lambda lag, lam: lam**lag)
    check("gae", 1, lambda lag, lam: (1 - lam) * lam ** (lag - 1))


def test_kl():
    value, slope = lines("kl", 0), lines("kl", 1)
    d = value["k1"][0]
    for kind, y, dy in [
        ("k1", d, torch.ones_like(d)),
        ("k2", d**2 / 2, d),
        ("k3", torch.exp(-d) - 1 + d, 1 - torch.exp(-d)),
    ]:
        assert_close(value[kind][1], y, scale=torch.full_like(d, 20.0))
        assert_close(slope[kind][1], dy, scale=torch.full_like(d, 20.0))


# ------------------------------------------------------------------------- as pictures


@pytest.mark.parametrize("name", FIGURES)
def test_every_picture_says_what_it_shows_and_stands_on_a_page(name):
    for axis in drawn(name).axes:
        assert axis.get_title() and axis.get_xlabel() and axis.get_ylabel() and axis.get_lines()
    shown = "".join(page.read_text("utf-8") for page in (ROOT / "docs").glob("*.md"))
    assert f"](figures/{name}.png)" in shown
    picture = ROOT / "docs" / "figures" / f"{name}.png"
    assert Image.open(picture).width == 1800 and picture.stat().st_size < 100_000


def test_there_is_no_picture_that_nothing_draws():
    assert {path.stem for path in (ROOT / "docs" / "figures").iterdir()} == set(FIGURES)


def test_a_picture_is_the_same_bytes_every_time(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["figures", "--only", "kl", "--output_dir", str(tmp_path)])
    main()
    with look():
        save(FIGURES["kl"](), tmp_path / "again.png")
    assert (tmp_path / "kl.png").read_bytes() == (tmp_path / "again.png").read_bytes()


def test_a_line_keeps_its_colour_among_many_faint_ones(tmp_path):
    """A palette by population gave the few pixels of a line the colour of the many around it."""
    wanted = ["#0072B2", "#D55E00", "#009E73", "#CC79A7"]
    with look():
        figure, axes = panels(2, 2)
        for axis, color in zip(axes, wanted, strict=True):
            for height in range(40):
                axis.fill_between([0, 1], height, height + 1, color=color, alpha=height / 80)
            axis.plot([0, 1], [0, 40], color=color)
        save(figure, tmp_path / "faint.png")
    found = {pixel for _, pixel in Image.open(tmp_path / "faint.png").convert("RGB").getcolors(999)}
    for color in wanted:
        rgb = tuple(bytes.fromhex(color[1:]))
        assert min(max(abs(a - b) for a, b in zip(rgb, p, strict=True)) for p in found) <= 3


# ------------------------------------------------------------------------ real runs' curves


def test_a_runs_metrics_are_kept_and_drawn(tmp_path, monkeypatch):
    """Only what is drawn, five digits; the held-out ones only where there are any."""
    monkeypatch.setattr(curves, "KEPT", tmp_path / "kept")
    run = tmp_path / "run"
    run.mkdir()
    before = {"loss": 0.9, "accuracy": 0.5}
    summary = {"loss": "sft", "before": before, "after": before, "steps": 2, "rows": 4}
    summary |= {"seconds": 1.0, "versions": {"torch": "2"}}
    train = {"model": "pocket", "data": "pocket", "seed": 7}
    command = f"python train.py --loss sft --output_dir {run}"
    for name, content in [
        ("config", {"command": command, "train": train}),
        ("status", {"state": "finished"}),
        ("summary", summary),
    ]:
        (run / f"{name}.json").write_text(json.dumps(content))
    rows = [
        {"step": 0, "eval/loss": 0.9, "eval/accuracy": 0.5, "eval/accuracy_norm": 0.25},
        {"step": 1, "loss": 0.123456789, "grad_norm": 3.0},
        {"step": 2, "loss": 0.5, "eval/loss": 0.7, "eval/accuracy": 1.0, "eval/accuracy_norm": 1.0},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert curves.keep(run) == "sft"
    about, kept = curves.read("sft")
    assert about["seed"] == 7 and str(tmp_path) not in json.dumps(about)
    assert kept[1] == {"step": 1, "loss": 0.12346} and len(kept) == 3
    loss, accuracy = curves.curves("sft").axes
    points = {line.get_label(): line.get_data() for line in loss.get_lines()}
    assert [list(z) for z in points["held-out"]] == [[0, 2], [0.9, 0.7]]
    assert [list(z) for z in loss.get_lines()[0].get_data()] == [[1, 2], [0.12346, 0.5]]
    assert len(accuracy.get_lines()) == 2


def test_kept_metrics_are_of_a_whole_run():
    for loss in curves.PANELS:
        about, rows = curves.read(loss)
        assert about["loss"] == loss and rows[-1]["step"] == about["steps"] > 0
        assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)


# ----------------------------------------------------------------------------- the pages


@pytest.mark.parametrize("page", links.pages(), ids=lambda page: page.name)
def test_links_lead_where_they_say(page):
    assert not [problem for link in links.links(page) if (problem := links.wrong(link))]


def test_pages_are_read_for_links():
    found = [link for page in links.pages() for link in links.links(page)]
    assert sum(link.part.startswith("L") for link in found) > 30
    assert sum(link.text.startswith("check_") for link in found) > 30


def test_every_loss_has_its_page():
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert set(curves.PANELS) | {"gae"} <= pages
    readme = (ROOT / "README.md").read_text("utf-8")
    assert all(f"](docs/{name}.md)" in readme for name in pages - {"README"})


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A small checkout: a page of docs/, a file of code and one of tests."""
    monkeypatch.setattr(links, "ROOT", tmp_path)
    for name, text in [
        ("losses/x.py", "import torch\n\n\ndef f(a, b):\n    return a[:, 0] - b\n"),
        ("tests/test_x.py", "def check_f(fn):\n    pass\n"),
        ("docs/x.md", "# How it fails\n"),
    ]:
        path = tmp_path / name
        path.parent.mkdir()
        path.write_text(text)
    return tmp_path / "docs" / "x.md"


@pytest.mark.parametrize(
    "link, problem",
    [
        ("[`return a[:, 0] - b`](../losses/x.py#L5)", None),
        ("[`return a[:, 0] - b`](../losses/x.py#L4)", "it is line 5"),
        ("[`return b[:, 0] - a`](../losses/x.py#L5)", "no line holds this text"),
        ("[a file](../losses/y.py)", "no such file"),
        ("![a picture](figures/x.png)", "no such file"),
        ("[`check_f`](../tests/test_x.py)", None),
        ("[`check_g`](../tests/test_x.py)", "no such test"),
        ("[there](x.md#how-it-fails), [here](#how-it-fails)", None),
        ("[there](x.md#how-it-works)", "no such heading"),
        ("[elsewhere](https://arxiv.org/abs/2305.18290)", None),
    ],
)
def test_a_link_that_misleads_is_found(page, link, problem):
    page.write_text(page.read_text() + link)
    found = [said for one in links.links(page) if (said := links.wrong(one))]
    assert len(found) == (problem is not None)
    assert problem is None or problem in found[0]


def test_line_numbers_are_moved_and_nothing_else(page):
    text = "[`return a[:, 0] - b`](../losses/x.py#L1) and [`import torch`](../losses/x.py#L30)."
    page.write_text(text)
    links.fix(page)
    assert page.read_text() == text.replace("L1)", "L5)").replace("L30", "L1")
