"""Metrics as sums and counts: right under any split into micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from data.trees import TreeBatch
from losses.base import Loss, Metric, accumulation_dtype

LOSS_PER = "loss per "


class Totals:
    """(sum, count) of every metric, added up over micro-batches, then once over ranks."""

    def __init__(self) -> None:
        self.parts: dict[str, list[Metric]] = {}

    def add(self, metrics: dict[str, Metric], *, dummy: bool = False) -> None:
        """Add one micro-batch's. A dummy's values are left out, but its names are needed: every
        rank must bring the same ones to `reduce`."""
        for name, (total, count) in metrics.items():
            zero = (torch.zeros_like(total), torch.zeros_like(count))
            self.parts.setdefault(name, []).append(zero if dummy else (total, count))

    def add_loss(self, totals: dict[str, Tensor], counts: dict[str, int], *, dummy: bool) -> None:
        """Add one micro-batch's part of the loss: a sum for each unit, and how many there are."""
        parts = {
            f"{LOSS_PER}{unit}": (total.detach(), torch.tensor(counts[unit], device=total.device))
            for unit, total in totals.items()
        }
        self.add(parts, dummy=dummy)

    def reduce(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over everything that was added on all ranks, `loss` first; one collective."""
        dtype = accumulation_dtype(accelerator.device)
        pairs = [
            torch.stack([torch.stack([x.to(dtype) for x in pair]) for pair in parts]).sum(0)
            for parts in self.parts.values()
        ]
        sums = accelerator.reduce(torch.stack(pairs), "sum").tolist()
        means = {name: s / n for name, (s, n) in zip(self.parts, sums, strict=True) if n}
        rest = {name: mean for name, mean in means.items() if not name.startswith(LOSS_PER)}
        parts = [mean for name, mean in means.items() if name.startswith(LOSS_PER)]
        return ({"loss": sum(parts)} if parts else {}) | rest


def step_means(
    accelerator: Accelerator,
    policy: nn.Module,
    loss: Loss,
    config: Any,
    batches: Iterable[TreeBatch],
) -> dict[str, float]:
    """Means over all micro-batches and ranks of what `loss.before_step` asks for, by name."""
    if loss.before_step is None:
        return {}
    totals = Totals()
    for batch in batches:
        with torch.no_grad():
            totals.add(loss.before_step(policy, batch, config), dummy=batch.dummy)
    return totals.reduce(accelerator)


def with_means(batch: TreeBatch, means: Mapping[str, float]) -> TreeBatch:
    """The batch with each mean as a column, the same number for every sequence, in float64."""
    shape, device = (batch.num_sequences,), batch.mask.device
    options: dict[str, Any] = {"dtype": accumulation_dtype(device), "device": device}
    return batch.with_columns({k: torch.full(shape, x, **options) for k, x in means.items()})


def ratio_variance(metrics: Mapping[str, float]) -> float:
    """Variance of the ratio over all tokens of a step, from the moments about 1 that add up."""
    return max(metrics["val/ratio_minus_1_squared"] - (metrics["val/ratio"] - 1) ** 2, 0.0)
