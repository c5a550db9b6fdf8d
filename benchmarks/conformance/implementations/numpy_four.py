"""Four of the functions in NumPy alone: what a file for the runner looks like.

    python -m benchmarks.conformance --implementation numpy_four

What is not here is skipped. `<name>_grad(cotangent, **the same arguments)` gives the gradient of
sum(cotangent x output) as a dict; functions without one are judged by their values alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

ARRAYS = "numpy"
VERSIONS = {"numpy": np.__version__}
Array = NDArray[Any]


def sft_loss(logps: Array, mask: Array) -> Array:
    return np.where(mask, -logps, 0)


def sft_loss_grad(cotangent: Array, logps: Array, mask: Array) -> dict[str, Array]:
    return {"logps": np.where(mask, -cotangent, 0)}


def dpo_loss(
    policy_chosen_logps: Array,
    policy_rejected_logps: Array,
    ref_chosen_logps: Array,
    ref_rejected_logps: Array,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    variant: str = "sigmoid",
) -> Array:
    if variant != "sigmoid":
        raise NotImplementedError(f"variant {variant}")
    h = (policy_chosen_logps - policy_rejected_logps) - (ref_chosen_logps - ref_rejected_logps)

    def nll(x: Array) -> Array:  # -log σ(x)
        return np.maximum(-x, 0) + np.log1p(np.exp(-np.abs(x)))

    return (1 - label_smoothing) * nll(beta * h) + label_smoothing * nll(-beta * h)


def gae(
    rewards: Array,
    values: Array,
    mask: Array,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    last_values: Array | None = None,
) -> tuple[Array, Array]:
    rewards, values = np.where(mask, rewards, 0), np.where(mask, values, 0)
    advantages = np.zeros_like(values)
    advantage = np.zeros_like(values[:, 0])
    after = advantage if last_values is None else last_values
    for t in reversed(range(values.shape[1])):
        here = mask[:, t]
        delta = rewards[:, t] + gamma * after - values[:, t]
        advantage = np.where(here, delta + gamma * lam * advantage, advantage)
        advantages[:, t] = np.where(here, advantage, 0)
        after = np.where(here, values[:, t], after)
    return advantages, np.where(mask, advantages + values, 0)


def ppo_policy_loss(
    logps: Array, old_logps: Array, advantages: Array, mask: Array, *, clip: float = 0.2
) -> Array:
    ratio = np.exp(np.where(mask, logps - old_logps, 0))
    clipped = np.clip(ratio, 1 - clip, 1 + clip)
    gain = np.minimum(ratio * advantages, clipped * advantages)
    return np.where(mask, -gain, 0)
