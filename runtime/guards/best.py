"""The best model so far by a held-out metric, and when to stop looking for a better one."""

from __future__ import annotations

from collections.abc import Mapping

from data.errors import USAGE, InputError
from runtime.state import TrainState

# Metrics that are better when lower, by the last part of their names; all others when higher.
LOWER = ("loss", "kl", "truncated", "mse", "error", "perplexity")


def check_metric(name: str, metrics: Mapping[str, float]) -> None:
    """Raise InputError unless an evaluation has the metric."""
    if name not in metrics:
        names = ", ".join(metrics)
        raise InputError(f"--keep_best {name}: no held-out metric; choose from {names}", USAGE)


def note_evaluation(state: TrainState, name: str) -> bool:
    """Take in `state.heldout`; whether it is the best so far. A tie is not better."""
    value = state.heldout[name]
    sign = -1 if name.split("/")[-1] in LOWER else 1
    better = state.best is None or sign * value > sign * state.best
    if better:
        state.best, state.best_step, state.not_better = value, state.step, 0
    else:
        state.not_better += 1
    return better
