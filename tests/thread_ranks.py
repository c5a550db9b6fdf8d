"""Two ranks as two threads of one process: what the loop asks of Accelerate, and DDP's mean.

A collective waits until every rank has come to it, as the real ones do. One that a rank never comes
to, or two that are not the same, break the meeting, and `on_ranks` gives None for the ranks in it.
"""

import threading
from contextlib import nullcontext

import torch
from tiny_models import flat_grad

PATIENCE = 60.0  # seconds: a busy machine is no missing rank


class Rank:
    device = torch.device("cpu")

    def __init__(self, number, brought, barrier):
        self.process_index, self.num_processes = number, len(brought)
        self.is_main_process = number == 0
        self.brought, self.barrier = brought, barrier

    def _exchange(self, x):
        self.brought[self.process_index] = x
        self.barrier.wait()
        everyone = list(self.brought)
        self.barrier.wait()
        return everyone

    def reduce(self, x, reduction):
        assert reduction == "sum"
        parts = self._exchange(x)
        if len({part.shape for part in parts}) > 1:
            raise threading.BrokenBarrierError
        return sum(parts)

    def gather_for_metrics(self, objects, *, use_gather_object):
        assert use_gather_object
        return [one for part in self._exchange(objects) for one in part]

    def gather(self, x):
        return torch.cat(self._exchange(x))

    def pad_across_processes(self, x, dim):
        assert dim == 1 and x.dtype != torch.bool  # which Accelerate would not pad
        widest = max(part.shape[1] for part in self._exchange(x))
        return torch.nn.functional.pad(x, (0, widest - x.shape[1]))

    def autocast(self):
        return nullcontext()

    def no_sync(self, module):
        return nullcontext()

    def backward(self, loss):
        loss.backward()

    def averaged_gradient(self, module):
        """What DDP leaves on every rank."""
        return self.reduce(flat_grad(module), "sum") / self.num_processes


def on_ranks(work, count=2):
    """What `work(rank)` returns on each rank."""
    barrier, brought = threading.Barrier(count, timeout=PATIENCE), [None] * count
    found, errors = [None] * count, []

    def run(number):
        try:
            found[number] = work(Rank(number, brought, barrier))
        except threading.BrokenBarrierError:
            barrier.abort()
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return found
