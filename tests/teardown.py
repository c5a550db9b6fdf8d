"""Run by test_ranks.py: one process that trains and ends its process group, many times over.

    python tests/teardown.py launch|run_rank ROUNDS

With one process in the group every round ends as a rank's run does. Where DDP is the last owner of
the group, this stands still after a few rounds (tests/ranks.py says why).
"""

import sys
import weakref
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import torch  # noqa: E402
from ranks import run_rank  # noqa: E402
from torch import distributed  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

from data.errors import IO_ERROR  # noqa: E402
from runtime.cli import parse_args  # noqa: E402
from train import launch  # noqa: E402

ARGS = parse_args(["--loss", "sft", "--dry_run"])
freed = []


def step(accelerator):
    policy = DistributedDataParallel(torch.nn.Linear(64, 64))
    accelerator._models.append(policy)  # as `prepare` does where there are several processes
    policy(torch.ones(1, 64)).sum().backward()
    for _ in range(4):
        distributed.all_reduce(torch.ones(1000))  # what accelerator.reduce does then
    weakref.finalize(policy.reducer, freed.append, "DDP")
    weakref.finalize(distributed.group.WORLD, freed.append, "group")
    return policy


def main(out, accelerator):
    policy = step(accelerator)  # noqa: F841  (it lives until this function is left)


def train(args, accelerator, directory):
    policy = step(accelerator)  # noqa: F841
    accelerator.end_training()


def train_that_fails(args, accelerator, directory):
    train(args, accelerator, directory)
    raise OSError("the disk is full")


ROUNDS = {
    "launch": lambda: launch(train, ARGS) == 0,
    "failing launch": lambda: launch(train_that_fails, ARGS) == IO_ERROR,
    "run_rank": lambda: run_rank(main) is None,
}

name, rounds = sys.argv[1], int(sys.argv[2])
for _ in range(rounds):
    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    assert ROUNDS[name]()
    assert not distributed.is_initialized()
assert freed == ["DDP", "group"] * rounds, freed
