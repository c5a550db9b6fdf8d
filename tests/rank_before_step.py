"""Run by torchrun from test_before_step.py: one step of the toy loss, its rows shared unequally."""

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import torch  # noqa: E402
from kto_like import LOSS  # noqa: E402
from ranks import run_rank  # noqa: E402
from test_before_step import REFERENCES, SHARES, data_with  # noqa: E402
from test_step import batch_for, module_for  # noqa: E402
from tiny_models import flat_grad  # noqa: E402

from train import optimizer_step  # noqa: E402


def main(out, accelerator):
    assert accelerator.num_processes == 2
    for name in REFERENCES:
        module, data = module_for(LOSS), data_with(name)
        policy = accelerator.prepare(module)
        batches = [batch_for(data, members) for members in SHARES[accelerator.process_index]]
        _, metrics = optimizer_step(accelerator, policy, LOSS, LOSS.config(), batches)
        stem = f"{name}-{accelerator.process_index}"
        torch.save(flat_grad(module), out / f"{stem}.pt")
        (out / f"{stem}.json").write_text(json.dumps(metrics))


run_rank(main)
