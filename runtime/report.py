"""What a person sees of a run: the table at its end, the curves, the model card."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tqdm import tqdm

from runtime.cli import Args

NAMES = {
    "loss": "held-out loss",
    "accuracy": "held-out accuracy",
    "accuracy_norm": "held-out accuracy, per character",
    "lm_eval/acc": "lm-eval piqa acc",
    "lm_eval/acc_norm": "lm-eval piqa acc_norm",
    "rewards/margins": "reward margin",
    "logps/chosen": "log-prob of the chosen response",
    "logps/rejected": "log-prob of the rejected response",
    "reward": "reward of sampled answers",
    "success": "right answers among them",
    "kl": "KL to the start, per answer",
    "response_length": "tokens per answer",
}
PERCENT = ("accuracy", "accuracy_norm", "lm_eval/acc", "lm_eval/acc_norm", "success")


def table(summary: dict[str, Any]) -> str:
    """Before and after on the held-out rows, and what the run took."""
    before, after = summary["before"], summary["after"]
    lines = [f"{'':34}{'before':>10}{'after':>10}"]
    for key, name in NAMES.items():
        if key in before:
            lines.append(f"{name:34}{_cell(key, before[key]):>10}{_cell(key, after[key]):>10}")
    took = [f"{summary['seconds']:.1f} s", f"{summary['steps']} steps"]
    took += [f"{summary['rows_per_second']:.1f} {summary['unit']}/s while training"]
    return "\n".join([*lines, ", ".join(took)])


def _cell(key: str, value: float) -> str:
    return f"{100 * value:.1f} %" if key in PERCENT else f"{value:.4f}"


def opening(args: Args, processes: int) -> str:
    """How the run will learn, with those of the loss's own flags that something has set."""
    parts = [f"learning rate {args.config.learning_rate:g} {args.config.schedule}"]
    parts += [f"{name} {value}" for name, value in args.loss_flags.items() if name in args.origin]
    return ", ".join([*parts, f"{processes} process{'es' * (processes > 1)}"])


def versions() -> dict[str, str]:
    """Of the packages that a run's numbers depend on."""
    return {name: version(name) for name in ("torch", "transformers", "accelerate", "datasets")}


def peak_memory(device: torch.device) -> int:
    """Most bytes that this process has held: of the GPU where it computes on one, else of RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the process that started this one held
        return 1024 * int(re.findall(r"^VmHWM:\s*(\d+) kB", status.read_text("utf-8"), re.M)[0])
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def command() -> str:
    """The command line that started this run, as a shell takes it."""
    return shlex.join(["python", *sys.argv])


def model_card(loss: str, base: str, summary: dict[str, Any]) -> str:
    """README.md of the saved model: what it is, how it was made, what it scored."""
    from huggingface_hub import ModelCard, ModelCardData

    on_hub = base if base != "pocket" and not Path(base).expanduser().exists() else None
    data = ModelCardData(
        base_model=on_hub, library_name="transformers", tags=["alignment-losses", loss]
    )
    versions = ", ".join(f"{k} {v}" for k, v in summary["versions"].items())
    text = f"""# {Path(base).name}, trained with {loss}

Started from `{base}` and trained with the `{loss}` loss of alignment-losses.

- Command: `{command()}`
- Data: {summary["data"]}
- Versions: {versions}

On the held-out rows:

```
{table(summary)}
```
"""
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}"))


class Progress:
    """A bar on a terminal; elsewhere a plain line now and then, so that logs stay readable."""

    SHOWN = (
        *("loss", "rewards/margins", "objective/scores", "objective/kl"),
        *("eval/loss", "eval/accuracy", "eval/reward"),
    )

    def __init__(self, steps: int, loss: str, *, enabled: bool) -> None:
        self.steps, self.enabled = steps, enabled
        self.every = max(1, steps // 10)
        tty = enabled and sys.stderr.isatty()
        self.bar = tqdm(total=steps, desc=loss, dynamic_ncols=True) if tty else None

    def show(self, step: int, record: dict[str, float]) -> None:
        shown = {k: f"{record[k]:.4f}" for k in self.SHOWN if k in record}
        if self.bar is not None:
            self.bar.set_postfix(shown, refresh=False)
            self.bar.update()
        elif self.enabled and (step in (1, self.steps) or step % self.every == 0):
            print(f"step {step}/{self.steps}", *(f"{k} {v}" for k, v in shown.items()), sep="  ")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


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
    figure.suptitle(title, fontsize=9, wrap=True)
    figure.tight_layout()
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def smooth(values: Sequence[float]) -> list[float]:
    """Mean over about a tenth of the curve around each point: no lag, unlike a running mean."""
    half = max(1, len(values) // 20)
    return [fmean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]
