"""Numbers that must not reach the weights: what is not finite, and what jumps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from data.errors import NOT_FINITE, InputError
from runtime.state import TrainState

IN_A_ROW = 3  # steps that were not finite end a run
SHARE, AT_LEAST = 0.1, 10  # so do more than this share of all its steps, and so many
WINDOW = 128  # steps that a jump is judged by


def clip_gradient(
    parameters: Iterable[tuple[str, nn.Parameter]], limit: float
) -> tuple[float, str]:
    """Scale the gradient to the global norm `limit` at most; its norm before, and what is wrong.

    What is wrong names the parameters whose gradient is not finite; then nothing is scaled.
    """
    with_gradient = [(name, p) for name, p in parameters if p.grad is not None]
    gradients = [p.grad for _, p in with_gradient if p.grad is not None]
    if not gradients:
        return 0.0, ""
    total = torch.nn.utils.get_total_norm(gradients)
    norm = float(total)
    if math.isfinite(norm):
        torch.nn.utils.clip_grads_with_norm_([p for _, p in with_gradient], limit, total)
        return norm, ""
    bad = [name for name, p in with_gradient if not bool(torch.isfinite(p.grad).all())]  # type: ignore[arg-type]
    if not bad:
        return norm, "the norm of the gradient is too large for its dtype"
    more = f" and {len(bad) - 1} more of {len(with_gradient)} parameters" if len(bad) > 1 else ""
    return norm, f"the gradient of {bad[0]}{more}"


def not_finite(metrics: Mapping[str, float]) -> str:
    """Which of a step's numbers are not finite; empty if all are."""
    return ", ".join(
        f"{name} {value}" for name, value in metrics.items() if not math.isfinite(value)
    )


def jumped(state: TrainState, loss: float, grad_norm: float, deviations: float) -> str:
    """What lies more than so many standard deviations above the last WINDOW steps; empty: nothing.

    As OLMo's SkipStepOptimizer. Judged once half of the window is known; the step then enters it.
    """
    found = ""
    if deviations and len(state.recent) >= WINDOW // 2:
        for name, value, before in zip(
            ("loss", "grad_norm"), (loss, grad_norm), zip(*state.recent, strict=True), strict=True
        ):
            mean, spread = statistics.fmean(before), statistics.pstdev(before)
            if value > mean + deviations * spread:
                found = found or f"{name} {value:.4g}, {mean:.4g} on average before"
    if deviations and not found:
        state.recent = [*state.recent, (loss, grad_norm)][-WINDOW:]
    return found


def count_skipped(state: TrainState, reason: str, rows: str) -> None:
    """Note a step that changed no weight, and end the run if there are too many.

    Raises:
        InputError: IN_A_ROW steps in a row, or more than SHARE of all steps.
    """
    state.bad_steps += 1
    state.skipped += 1
    where = f"step {state.step}: {reason}; its rows: {rows}"
    if state.bad_steps == IN_A_ROW:
        raise InputError(
            f"loss or gradient not finite for {IN_A_ROW} steps in a row, the last one {where};"
            " the weights are as before them",
            NOT_FINITE,
        )
    if state.skipped >= AT_LEAST and state.skipped > SHARE * state.step:
        raise InputError(
            f"loss or gradient not finite in {state.skipped} of {state.step} steps, the last one"
            f" {where}; none of them changed the weights",
            NOT_FINITE,
        )
