"""This project's own losses, and the division that train.py makes of a step's sums."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from losses import *  # noqa: F403 (every public function, by its own name)
from losses import masked_mean, masked_sum

VERSIONS = {"torch": torch.__version__}


def reduce(
    losses: Tensor, mask: Tensor, *, micro_batches: Sequence[int], unit: str = "token"
) -> Tensor:
    """As train.py: the units of the whole step counted first, then a sum of each micro-batch."""
    count = int(mask.sum()) if unit == "token" else len(mask)
    total = losses.new_zeros(())
    sizes = list(micro_batches)
    for part, keep in zip(losses.split(sizes), mask.split(sizes), strict=True):
        rows = masked_sum(part, keep) if unit == "token" else masked_mean(part, keep)
        total = total + rows.sum() / max(count, 1)
    return total
