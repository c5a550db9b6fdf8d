"""A pass over rows without gradients: for evaluation, the reference, rewards and rollouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from data.splits import Split
from data.trees import TreeBatch

Output = TypeVar("Output")


def forward_pass(
    module: Callable[[TreeBatch], Output],
    split: Split,
    *,
    max_tokens: int,
    device: torch.device,
    rank: int = 0,
    ranks: int = 1,
) -> Iterator[tuple[list[int], TreeBatch, Output]]:
    """Run `module` on all rows of `split`, in batches of at most `max_tokens` tokens.

    Each of `ranks` processes gets a share of the rows and the same number of batches; where there
    are fewer rows than that, the batch is a dummy and its members none.

    Yields:
        (positions of the rows in the split, their batch, what the module made of it).
    """
    for members, batch in split.batches(max_tokens, device, rank=rank, ranks=ranks):
        with torch.no_grad():  # not around the yield: it would reach into the caller's code
            output = module(batch)
        yield members, batch, output
