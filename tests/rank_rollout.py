"""Run by torchrun from test_ppo_steps.py: two rollouts and their steps, shared by two ranks."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import torch  # noqa: E402
from ranks import run_rank  # noqa: E402
from rollouts import left_behind, train  # noqa: E402
from test_ppo_steps import TRAININGS  # noqa: E402


def main(out, accelerator):
    assert accelerator.num_processes == 2
    for name, training in TRAININGS.items():
        # With this few tokens a forward, the ranks differ in how many micro-batches they make.
        run = train(**training, max_tokens=25)
        torch.save(left_behind(run), out / f"{name}-{accelerator.process_index}.pt")


run_rank(main)
