"""The picture of a run: curves.png, drawn from metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean


def draw_curves(metrics: Path, picture: Path, title: str) -> None:
    """Draw metrics.jsonl: loss, held-out accuracy, rewards, log-probs, gradient norm."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]
    panels = [
        ("loss", [("loss", "training"), ("eval/loss", "held-out")], "loss (nats)"),
        (
            "held-out accuracy",
            [("eval/accuracy", "accuracy"), ("eval/accuracy_norm", "per character")],
            "pairs ranked rightly",
        ),
        (
            "rewards",
            [("rewards/chosen", "chosen"), ("rewards/rejected", "rejected")],
            "score or implicit reward",
        ),
        (
            "log-probability of the response",
            [("logps/chosen", "chosen"), ("logps/rejected", "rejected")],
            "nats, summed over tokens",
        ),
        (
            "score of the sampled responses",
            [("objective/scores", "training prompts"), ("eval/reward", "held-out prompts")],
            "score",
        ),
        (
            "KL to the reference, per response",
            [("objective/kl", "training prompts"), ("eval/kl", "held-out prompts")],
            "nats",
        ),
        (
            "policy against the rollout's",
            [("policy/approxkl_avg", "approximate KL"), ("policy/clipfrac_avg", "clipped share")],
            "mean over tokens",
        ),
        ("gradient norm", [("grad_norm", "before clipping")], "L2 norm"),
        ("learning rate", [("learning_rate", "learning rate")], "per step"),
    ]
    panels = [p for p in panels if any(key in row for row in rows for key, _ in p[1])]
    panels = panels[: len(panels) // 2 * 2]
    figure, axes = plt.subplots(len(panels) // 2, 2, figsize=(10, 2.9 * (len(panels) // 2)))
    for axis, (name, curves, unit) in zip(axes.flat, panels, strict=True):
        for color, (key, label) in zip(("tab:blue", "tab:orange"), curves, strict=False):
            points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            if not points:
                continue
            steps, values = zip(*points, strict=True)
            if key == "learning_rate":
                axis.plot(steps, values, color=color)
            elif key.startswith("eval/"):
                axis.plot(steps, values, "o-", color=color, label=label, zorder=3)
            else:
                axis.plot(steps, values, color=color, alpha=0.3, linewidth=1)
                axis.plot(steps, smooth(values), color=color, label=label)
        axis.set_title(name, fontsize=11)
        axis.set_xlabel("optimizer step")
        axis.set_ylabel(unit)
        axis.grid(alpha=0.3)
        if len(curves) > 1:
            axis.legend(frameon=False, fontsize=9)
    literal = title.replace("$", r"\$")  # two would begin and end a formula
    figure.suptitle(literal, fontsize=9, wrap=True)
    figure.tight_layout()
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def smooth(values: Sequence[float]) -> list[float]:
    """Mean over about a tenth of the curve around each point: no lag, unlike a running mean."""
    half = max(1, len(values) // 20)
    return [fmean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]
