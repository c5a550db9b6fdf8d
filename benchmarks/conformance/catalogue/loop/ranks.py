"""Two ranks as two threads: what Accelerate and DDP do between processes, in one of them.

`reduce` and `gather` wait for every rank, as the real ones do, and a rank that never comes leaves
the others waiting: here for a minute. DDP's part is `averaged_gradient`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.conformance.catalogue.loop.world import CPU, flat_gradient

PATIENCE = 60.0  # seconds: a busy machine is no missing rank


class Meeting:
    """Where the ranks exchange tensors."""

    def __init__(self, ranks: int) -> None:
        self.barrier = threading.Barrier(ranks, timeout=PATIENCE)
        self.brought: list[Any] = [None] * ranks

    def exchange(self, rank: int, x: Tensor) -> list[Tensor]:
        self.brought[rank] = x
        self.barrier.wait()
        everyone = list(self.brought)
        self.barrier.wait()
        return everyone


class Rank:
    """What the loop uses of an `Accelerator`."""

    device = CPU

    def __init__(self, meeting: Meeting, number: int, count: int) -> None:
        self.meeting, self.process_index, self.num_processes = meeting, number, count
        self.is_main_process = number == 0

    def reduce(self, x: Tensor, reduction: str = "sum") -> Tensor:
        assert reduction == "sum"
        parts = self.meeting.exchange(self.process_index, x)
        if len({part.shape for part in parts}) > 1:  # two collectives that are not the same one
            raise threading.BrokenBarrierError
        return torch.stack(parts).sum(0)

    def gather(self, x: Tensor) -> Tensor:
        return torch.cat(self.meeting.exchange(self.process_index, x))

    def pad_across_processes(self, x: Tensor, dim: int = 0) -> Tensor:
        widest = max(part.shape[dim] for part in self.meeting.exchange(self.process_index, x))
        shape = list(x.shape)
        shape[dim] = widest - x.shape[dim]
        return torch.cat([x, x.new_zeros(shape)], dim)

    def autocast(self) -> Any:
        return nullcontext()

    def no_sync(self, module: nn.Module) -> Any:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def averaged_gradient(self, module: nn.Module) -> Tensor:
        """What DDP leaves on every rank: the mean over them."""
        return self.reduce(flat_gradient(module)) / self.num_processes


def on_ranks(count: int, work: Callable[[Any], Any]) -> list[Any]:
    """What `work` returns on each rank; None where it waits for one that never comes."""
    meeting = Meeting(count)
    found: list[Any] = [None] * count
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            found[number] = work(Rank(meeting, number, count))
        except threading.BrokenBarrierError:
            pass
        except BaseException as error:
            errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return found
