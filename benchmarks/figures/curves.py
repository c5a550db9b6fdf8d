"""Pictures of real runs: what the metrics of a healthy run look like.

A picture is drawn from `benchmarks/results/curves/<loss>.jsonl`, the part of a run's metrics.jsonl
that it shows, behind a first line that says which run that was. `keep` writes such a file.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.figures.style import COLORS, DASHES, panels
from benchmarks.record import ROOT, commit, read_run
from runtime.curves import smooth

KEPT = ROOT / "benchmarks" / "results" / "curves"
WHICH = ("loss", "model", "data", "seed", "command", "steps", "rows", "versions")
Panel = tuple[str, str, dict[str, str]]  # title, unit, metric -> label

LOSS: Panel = ("loss", "nats", {"loss": "training", "eval/loss": "held-out"})
RANKED: Panel = (
    "eval/accuracy, eval/accuracy_norm",
    "share of pairs",
    {"eval/accuracy": "summed log-prob", "eval/accuracy_norm": "per character"},
)
PANELS: dict[str, list[Panel]] = {
    "sft": [LOSS, RANKED],
    "reward": [
        LOSS,
        ("accuracy", "share of pairs", {"accuracy": "training", "eval/accuracy": "held-out"}),
        (
            "rewards/chosen, rewards/rejected",
            "score",
            {"rewards/chosen": "chosen", "rewards/rejected": "rejected"},
        ),
        ("margin", "difference of scores", {"margin": "training", "eval/margin": "held-out"}),
    ],
    "dpo": [
        LOSS,
        (
            "rewards/accuracies, eval/accuracy",
            "share of pairs",
            {
                "rewards/accuracies": "h > 0, training",
                "eval/rewards/accuracies": "h > 0, held-out (step 0: all ties)",
                "eval/accuracy": "likelier, held-out: eval/accuracy",
            },
        ),
        (
            "rewards/chosen, rewards/rejected",
            "implicit reward",
            {"rewards/chosen": "chosen", "rewards/rejected": "rejected"},
        ),
        (
            "eval/logps",
            "nats per response",
            {"eval/logps/chosen": "chosen", "eval/logps/rejected": "rejected"},
        ),
    ],
    "orpo": [
        ("nll_loss", "nats per token", {"nll_loss": "training", "eval/nll_loss": "held-out"}),
        (
            "odds_ratio_loss",
            "nats",
            {"odds_ratio_loss": "training", "eval/odds_ratio_loss": "held-out"},
        ),
        (
            "log_odds_ratio",
            "nats",
            {"log_odds_ratio": "training", "eval/log_odds_ratio": "held-out"},
        ),
        (
            "eval/mean_logps",
            "nats per token",
            {"eval/mean_logps/chosen": "chosen", "eval/mean_logps/rejected": "rejected"},
        ),
    ],
    "simpo": [
        LOSS,
        (
            "rewards/accuracies, eval/accuracy",
            "share of pairs",
            {
                "rewards/accuracies": "d > 0, training",
                "eval/rewards/accuracies": "d > 0, held-out",
                "eval/accuracy": "likelier, held-out: eval/accuracy",
            },
        ),
        (
            "rewards/margins",
            "β times d",
            {"rewards/margins": "training", "eval/rewards/margins": "held-out"},
        ),
        (
            "eval/mean_logps",
            "nats per token",
            {"eval/mean_logps/chosen": "chosen", "eval/mean_logps/rejected": "rejected"},
        ),
    ],
    "ppo": [
        (
            "objective/scores",
            "mean score",
            {"objective/scores": "training", "eval/reward": "held-out"},
        ),
        (
            "objective/kl",
            "nats per response",
            {"objective/kl": "training", "eval/kl": "held-out"},
        ),
        ("policy/clipfrac_avg", "share of tokens", {"policy/clipfrac_avg": "training"}),
        ("loss/value_avg", "½ squared error", {"loss/value_avg": "training"}),
    ],
}


def keep(directory: Path) -> str:
    """Write what the picture of a finished run needs; the name of the run's loss."""
    run = read_run(directory)
    wanted = {key for _, _, lines in PANELS[run["loss"]] for key in lines}
    kept: list[dict[str, Any]] = [{"commit": commit(), **{key: run[key] for key in WHICH}}]
    for text in (directory / "metrics.jsonl").read_text("utf-8").splitlines():
        row = json.loads(text)
        shown = {key: float(f"{row[key]:.5g}") for key in sorted(wanted & row.keys())}
        if shown:
            kept.append({"step": row["step"], **shown})
    KEPT.mkdir(parents=True, exist_ok=True)
    target = KEPT / f"{run['loss']}.jsonl"
    target.write_text("".join(json.dumps(row) + "\n" for row in kept), "utf-8")
    return str(run["loss"])


def read(loss: str) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Which run a kept file is of, and its rows."""
    run, *rows = map(json.loads, (KEPT / f"{loss}.jsonl").read_text("utf-8").splitlines())
    return run, rows


def curves(loss: str) -> Figure:
    run, rows = read(loss)
    shown = PANELS[loss]
    figure, axes = panels(len(shown) // 2)
    for axis, (title, unit, lines) in zip(axes, shown, strict=True):
        for number, (key, label) in enumerate(lines.items()):
            points = [(row["step"], row[key]) for row in rows if key in row]
            draw(axis, points, label, number, dots=key.startswith("eval/"))
        axis.set_title(title, family="monospace")
        axis.set_xlabel("optimizer step")
        axis.set_ylabel(unit)
        if len(lines) > 1:
            axis.legend()
    figure.suptitle(
        f"--loss {loss} on {run['data']}, seed {run['seed']}. Thin: as logged; thick: mean over a"
        " tenth of the run; dots: held-out.",
        fontsize=9.5,
    )
    return figure


def draw(
    axis: Axes, points: list[tuple[float, float]], label: str, number: int, *, dots: bool
) -> None:
    """One metric: as it is where it is a measurement on all held-out rows, else smoothed too."""
    steps, values = zip(*points, strict=True)
    color, dash = COLORS[number], DASHES[number]
    if dots:
        axis.plot(steps, values, "o", linestyle=dash, color=color, label=label, markersize=4)
    else:
        axis.plot(steps, values, color=color, alpha=0.35, linewidth=0.8)
        axis.plot(steps, smooth(values), color=color, linestyle=dash, label=label)


CURVES = {f"{loss}-curves": partial(curves, loss) for loss in PANELS}
