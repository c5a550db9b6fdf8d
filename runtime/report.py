"""What a person sees of a run: its settings, the progress bar, the table."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from data.errors import without_secrets
from runtime.config import Run
from runtime.guards.outputs import say

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


def settings(run: Run, processes: int) -> str:
    """How the run will learn, with those of the loss's own flags that something has set."""
    parts = [f"learning rate {run.learning_rate:g} {run.train.schedule}"]
    parts += [f"{k} {v}" for k, v in asdict(run.loss).items() if k in run.origin]
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
    """The command line that started this run, as a shell takes it, without passwords in URLs."""
    return shlex.join(["python", *map(without_secrets, sys.argv)])


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

    def start(self, step: int) -> None:
        """So many steps were made before."""
        if self.bar is not None:
            self.bar.update(step)

    def show(self, step: int, record: dict[str, float]) -> None:
        shown = {k: f"{record[k]:.4f}" for k in self.SHOWN if k in record}
        if self.bar is not None:
            self.bar.set_postfix(shown, refresh=False)
            self.bar.update()
        elif self.enabled and (step in (1, self.steps) or step % self.every == 0):
            say("  ".join([f"step {step}/{self.steps}", *(f"{k} {v}" for k, v in shown.items())]))

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
