"""The study's figures: accuracy bars, curves over the pairs seen, reward against KL."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from benchmarks.figures.style import look, panels, save, words
from benchmarks.study.collect import BASE
from benchmarks.study.plan import Stage, Study
from runtime.curves import smooth

# Okabe and Ito's colours. Dashed: started from sft, beside the same method from the base.
COLORS = {
    BASE: "#666666",
    "sft": "#0072B2",
    "reward": "#000000",
    "ppo": "#D55E00",
    "dpo": "#009E73",
    "orpo": "#CC79A7",
    "sft-dpo": "#009E73",
    "sft-orpo": "#CC79A7",
}
PAIRS = "preference pairs seen in this stage"
SAMPLED = "responses sampled in this stage"
UNITS = {
    "sft": "loss, nats a token",
    "reward": "loss, nats a pair",
    "ppo": "loss a token: policy + critic",
    "dpo": "loss, nats a pair",
    "orpo": "loss, nats",
    "sft-dpo": "loss, nats a pair",
    "sft-orpo": "loss, nats",
}
Points = list[tuple[float, float]]


def read_metrics(study: Study, stage: Stage, seed: int) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, each with the `pairs` that the stage had seen by then."""
    run = study.directory(seed, stage.name)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    config = json.loads((run / "config.json").read_text("utf-8"))
    passes = config["loss"]["ppo_epochs"] if stage.loss == "ppo" else 1
    return [r | {"pairs": r["step"] * config["train"]["batch_size"] / passes} for r in rows]


Curves = dict[tuple[str, int], list[dict[str, Any]]]  # (stage, seed) -> its metrics


def draw(study: Study, results: dict[str, Any]) -> dict[str, Path]:
    """Draw what there is something of; name -> file."""
    curves = {
        (name, int(seed)): read_metrics(study, study.stage(name), int(seed))
        for name, by_seed in results["costs"].items()
        for seed in by_seed
    }
    folder = study.output_dir / "figures"
    drawn = {}
    pictures: dict[str, Callable[[], bool]] = {
        "accuracy": lambda: accuracy(results, folder / "accuracy.png"),
        "heldout": lambda: heldout(curves, folder / "heldout.png"),
        "losses": lambda: losses(curves, folder / "losses.png"),
        "margins": lambda: margins(study, curves, folder / "margins.png"),
        "logps": lambda: logps(study, curves, folder / "logps.png"),
        "ppo": lambda: reward_kl(curves, folder / "ppo.png"),
    }
    with look():
        for name, picture in pictures.items():
            if picture():
                drawn[name] = folder / f"{name}.png"
            else:
                (folder / f"{name}.png").unlink(missing_ok=True)
    return drawn


def accuracy(results: dict[str, Any], path: Path) -> bool:
    """Bars of acc and acc_norm; the error bars are those of the table."""
    figure, axes = panels(1, 2)
    names = list(results["models"])
    for axis, key in zip(axes, ("acc", "acc_norm"), strict=True):
        values = [
            (mean, spread or 0.0) for mean, spread in (results["models"][n][key] for n in names)
        ]
        bars = axis.barh(
            names,
            [100 * mean for mean, _ in values],
            xerr=[100 * spread for _, spread in values],
            color=[COLORS[name] for name in names],
            error_kw={"capsize": 3, "ecolor": "#222222"},
        )
        for name, bar, (mean, spread) in zip(names, bars, values, strict=True):
            bar.set_alpha(0.6 if name.startswith("sft-") else 1.0)
            axis.annotate(
                f"{100 * mean:.1f}",
                (100 * (mean + spread), bar.get_y() + bar.get_height() / 2),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
            )
        axis.set_axisbelow(True)
        axis.axvline(50, color="#222222", linestyle=":", linewidth=1)
        axis.set_xlim(0, 112)
        axis.set_xticks(range(0, 101, 20))
        axis.invert_yaxis()
        words(axis, key, "held-out pairs ranked rightly, % (dotted: chance)", "", None)
    save(figure, path)
    return True


def heldout(curves: Curves, path: Path) -> bool:
    """Held-out pair accuracy of all stages that have pairs, over the pairs seen."""
    figure, axes = panels(1, 2)
    titles = {"eval/accuracy": "accuracy", "eval/accuracy_norm": "accuracy per character"}
    drawn = []
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        lines = [_mean_line(axis, curves, name, key, label=name, scale=100) for name in COLORS]
        drawn.append(any(lines))
        axis.set_visible(drawn[-1])
        if drawn[-1]:
            words(axis, f"held-out {title}", PAIRS, "pairs ranked rightly, %", "lower right")
    save(figure, path)
    return any(drawn)


def losses(curves: Curves, path: Path) -> bool:
    """One small panel a stage: the losses are different quantities, so they share no axis."""
    names = [name for name in COLORS if any(stage == name for stage, _ in curves)]
    if not names:
        return False
    figure, axes = panels(-(-len(names) // 2), 2)
    for axis, name in zip(axes, names, strict=False):
        for (stage, _), rows in curves.items():
            points = _points(rows, "loss") if stage == name else []
            if points:
                axis.plot(*zip(*points, strict=True), color=COLORS[name], alpha=0.15, linewidth=0.8)
        _mean_line(axis, curves, name, "loss", label="training, smoothed", smoothed=True)
        shown: dict[str, Any] = {"marker": "o", "color": "#222222", "style": ":"}
        _mean_line(axis, curves, name, "eval/loss", label="held-out", **shown)
        seen = SAMPLED if name == "ppo" else PAIRS
        words(axis, name, seen, UNITS[name], "best" if axis is axes[0] else None)
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    save(figure, path)
    return True


def margins(study: Study, curves: Curves, path: Path) -> bool:
    """Held-out margins by loss, each in its own unit."""
    kinds = {
        "dpo": ("eval/rewards/margins", "dpo: reward margin", "β × difference of log-ratios, nats"),
        "orpo": ("eval/log_odds_ratio", "orpo: log odds ratio", "nats"),
        "reward": ("eval/margin", "reward model: margin", "score(chosen) - score(rejected)"),
    }
    kinds = {k: v for k, v in kinds.items() if any(study.stage(s).loss == k for s, _ in curves)}
    if not kinds:
        return False
    figure, axes = panels(-(-len(kinds) // 2), 2)
    for axis, (loss, (key, title, unit)) in zip(axes, kinds.items(), strict=False):
        for name in dict.fromkeys(stage for stage, _ in curves if study.stage(stage).loss == loss):
            _mean_line(axis, curves, name, key, label=name)
        words(axis, f"{title}, held-out", PAIRS, unit)
    for axis in axes[len(kinds) :]:
        axis.set_visible(False)
    save(figure, path)
    return True


def logps(study: Study, curves: Curves, path: Path) -> bool:
    """Does the chosen response's log-prob fall? Chosen and rejected, held-out, for dpo and orpo."""
    kinds = {
        "dpo": ("eval/logps", "log-probability of the response, nats"),
        "orpo": ("eval/mean_logps", "log-probability a token, nats"),
    }
    stages = [
        s for s in dict.fromkeys(stage for stage, _ in curves) if study.stage(s).loss in kinds
    ]
    if not stages:
        return False
    figure, axes = panels(-(-len(stages) // 2), 2)
    for axis, name in zip(axes, stages, strict=False):
        key, unit = kinds[study.stage(name).loss]
        _mean_line(axis, curves, name, f"{key}/chosen", label="chosen", color="#0072B2", style="-")
        rejected: dict[str, Any] = {"label": "rejected", "color": "#D55E00", "style": (0, (2, 1.5))}
        _mean_line(axis, curves, name, f"{key}/rejected", **rejected)
        words(axis, f"{name}, held-out", PAIRS, unit, "best")
    for axis in axes[len(stages) :]:
        axis.set_visible(False)
    save(figure, path)
    return True


def reward_kl(curves: Curves, path: Path) -> bool:
    """PPO's reward against the KL it has paid for it, from its start; and both over time."""
    runs = {seed: rows for (stage, seed), rows in curves.items() if stage == "ppo"}
    if not runs:
        return False
    figure, axes = panels(1, 2)
    for i, (seed, rows) in enumerate(runs.items()):
        sampled = [r for r in rows if r.get("objective/kl") is not None]
        axes[0].scatter(
            [r["objective/kl"] for r in sampled],
            [r["objective/scores"] for r in sampled],
            color="#999999",
            s=7,
            label="training, a dot a rollout" if i == 0 else None,
        )
        points = [(r["eval/kl"], r["eval/reward"]) for r in rows if "eval/kl" in r]
        if points:
            label = f"held-out, seed {seed}"
            style: dict[str, Any] = {"color": COLORS["ppo"], "linewidth": 1, "markersize": 5}
            axes[0].plot(*zip(*points, strict=True), marker="os^Dv"[i % 5], label=label, **style)
    x, y = "KL to ppo's start, nats an answer", "mean score of the reward model"
    words(axes[0], "reward against KL", x, y, None)
    # below: every corner may hold points
    axes[0].legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    _mean_line(axes[1], curves, "ppo", "eval/reward", label="score", marker="o")
    _mean_line(
        axes[1], curves, "ppo", "eval/kl", label="KL, nats", marker="s", color="#0072B2", style="--"
    )
    words(axes[1], "held-out prompts, over training", SAMPLED, "score; KL", "best")
    save(figure, path)
    return True


def _points(rows: list[dict[str, Any]], key: str) -> Points:
    return [(row["pairs"], row[key]) for row in rows if row.get(key) is not None]


def _mean_line(
    axis: Axes,
    curves: Curves,
    name: str,
    key: str,
    *,
    label: str,
    scale: float = 1.0,
    smoothed: bool = False,
    color: str | None = None,
    style: Any = None,
    marker: str | None = None,
) -> bool:
    """The mean over seeds, and the range between them shaded."""
    each = [dict(_points(rows, key)) for (stage, _), rows in curves.items() if stage == name]
    each = [points for points in each if points]
    if not each:
        return False
    shared = sorted(set.intersection(*(set(points) for points in each)))
    lines = [[scale * points[x] for x in shared] for points in each]
    lines = [smooth(line) if smoothed else line for line in lines]
    columns = list(zip(*lines, strict=True))
    color = color or COLORS[name]
    style = style or ((0, (6, 2)) if name.startswith("sft-") else "-")
    middle = [statistics.fmean(column) for column in columns]
    axis.plot(
        shared, middle, color=color, linestyle=style, marker=marker, markersize=4, label=label
    )
    if len(each) > 1:
        low, high = [min(c) for c in columns], [max(c) for c in columns]
        axis.fill_between(shared, low, high, color=color, alpha=0.15, linewidth=0)
    return True
