"""One optimizer step on two ranks against the same step by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import train
from benchmarks.conformance.catalogue.loop.base import Seen, in_the_loop
from benchmarks.conformance.catalogue.loop.ranks import on_ranks
from benchmarks.conformance.catalogue.loop.step import by_hand, compared, data_of, pieces
from benchmarks.conformance.catalogue.loop.world import CPU, flat_gradient, tiny
from losses.forward import Policy


def two_ranks(loss: str = "sft", shares: Sequence[int] = (4, 1)) -> list[Seen]:
    """A step of five rows on two ranks, four on one and one on the other."""
    twin, members = tiny(), pieces(shares)
    record, data = data_of(loss)
    expected = by_hand(loss, twin, data.rows)
    expected.backward()

    policies = [Policy(tiny()), Policy(tiny())]

    def work(rank: Any) -> tuple[float, Tensor]:
        policy = policies[rank.process_index]
        batches = [data.batch(members[rank.process_index], CPU)]
        _, metrics = train.optimizer_step(rank, policy, record, record.config(), batches)
        return metrics["loss"], rank.averaged_gradient(policy)

    found = on_ranks(2, work)
    seen = [Seen("ranks that come to the end", 2, sum(f is not None for f in found))]
    for number, result in enumerate(found):
        if result is not None:
            told = compared(expected, flat_gradient(twin), *result)
            seen += [replace(one, what=f"{one.what} of rank {number}") for one in told]
    return seen


class Alone:
    """A rank that keeps to itself."""

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.num_processes = 1

    def reduce(self, x: Tensor, reduction: str = "sum") -> Tensor:
        return x

    def __getattr__(self, name: str) -> Any:
        return getattr(self.accelerator, name)


class NotScaled(Alone):
    """A rank that forgets how many there are."""

    def reduce(self, x: Tensor, reduction: str = "sum") -> Tensor:
        return self.accelerator.reduce(x, reduction)  # type: ignore[no-any-return]


@in_the_loop("A2", "train:optimizer_step", two_ranks)
def averaged_over_ranks_once_more(right: Any, accelerator: Any, *rest: Any) -> Any:
    """Divided by the tokens of all ranks, and then DDP averages over the ranks: with two of them
    the gradient is half of what it should be."""
    return right(NotScaled(accelerator), *rest)


@in_the_loop("A17", "runtime.metrics:Totals.reduce", two_ranks)
def metrics_of_one_rank(right: Any, self: Any, accelerator: Any) -> Any:
    """Every rank logs what it saw itself; the file is rank 0's."""
    return right(self, Alone(accelerator))


@in_the_loop("A18", "runtime.metrics:Totals.reduce", two_ranks)
def mean_of_the_ranks_means(right: Any, self: Any, accelerator: Any) -> dict[str, float]:
    """Each rank's mean, averaged over the ranks: one row on rank 1 weighs as much as the four of
    rank 0."""
    told = right(self, Alone(accelerator))
    sums = accelerator.reduce(torch.tensor(list(told.values()), dtype=torch.float64), "sum")
    return dict(zip(told, (sums / accelerator.num_processes).tolist(), strict=True))


@in_the_loop("A19", "runtime.metrics:Totals.reduce", two_ranks)
def collective_on_the_main_process(right: Any, self: Any, accelerator: Any) -> dict[str, float]:
    """The reduction stands inside `if is_main_process`: rank 0 waits for ranks that never come."""
    main = accelerator.is_main_process
    told: dict[str, float] = right(self, accelerator if main else Alone(accelerator))
    return told
