"""What every loss file shares: the record it registers, what a step returns, and masked reductions.

Shapes: B pairs or rows, S sequences (two a pair: chosen, rejected, chosen, ...), T response tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from data.trees import TreeBatch as TreeBatch  # what a step is given

Metric = tuple[Tensor, Tensor]  # a detached (sum, count): adds up over micro-batches and ranks


@dataclass(frozen=True)
class LossOutput:
    """A *sum* for each unit, with its graph; the loop divides it by that unit's global count.

    The quotients together are the loss; `metrics` are what else is worth a curve.
    """

    totals: dict[str, Tensor]
    metrics: dict[str, Metric]


@dataclass(frozen=True)
class Loss:
    """One method, as the loop sees it. A new method is a new file with one of these at its end."""

    name: str
    config: type  # its flags: a frozen dataclass with a sentence under every field
    step: Callable[[Any, TreeBatch, Any], LossOutput]
    units: Callable[[TreeBatch, Any], dict[str, int]]  # what `totals` are sums over, and how many
    responses_per_row: Literal[
        1, 2
    ]  # responses of a row that it trains on: chosen, or chosen and rejected
    needs_reference: bool  # reads `batch.ref_logps`
    learning_rate: float  # default for `--learning_rate`, with its source beside it
    # What `step` is given: (S, T) log-probs of a causal LM, (S,) scores of a classifier, or the
    # log-probs and values of an actor and a critic over sampled responses.
    model: Literal["logps", "score", "actor_critic"] = "logps"
    # What its batches hold beyond response log-probs: keyword arguments of `pack`.
    packing: Callable[[Any], dict[str, bool]] = field(default=lambda config: {})
    # What held-out metrics must be before the first update, when the policy is its own reference.
    expected_initial_metrics: Callable[[Any], dict[str, float]] = field(default=lambda config: {})


def pairs(batch: TreeBatch, config: object) -> dict[str, int]:
    """The unit of a loss that is a mean over examples."""
    return {"pairs": batch.num_examples}


def tokens(batch: TreeBatch, config: object) -> dict[str, int]:
    """The unit of a loss that is a mean over response tokens."""
    return {"tokens": batch.num_tokens}


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """The dtype that sums for metrics are kept in: float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def sum_and_count(values: Tensor, mask: Tensor | None = None) -> Metric:
    """(sum, count) of `values`, over `mask` where one is given; detached, and summed wide."""
    values = values.detach().to(accumulation_dtype(values.device))
    if mask is None:
        return values.sum(), torch.tensor(values.numel(), device=values.device)
    return torch.where(mask, values, 0.0).sum(), mask.sum()


def masked_sum(x: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
    """Sum of `x` over `dim` where `mask` is True; what stands elsewhere, NaN too, is not read."""
    return torch.where(mask, x, 0.0).sum(dim)


def masked_mean(x: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
    """Mean of `x` over `dim` where `mask` is True; 0 where a row has no True at all."""
    return masked_sum(x, mask, dim) / mask.sum(dim).clamp(min=1)


def check_same_shape(**tensors: Tensor) -> None:
    """Raise ValueError unless all have one shape: broadcasting would average the wrong thing."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError("shapes differ: " + ", ".join(f"{n} {s}" for n, s in shapes.items()))
