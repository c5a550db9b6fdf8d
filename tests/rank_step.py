"""Run by torchrun from test_step.py: one optimizer step, its rows shared unequally by two ranks."""

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import torch  # noqa: E402
from ranks import run_rank  # noqa: E402
from test_step import DTYPES, batch_for, data_for, module_for  # noqa: E402
from tiny_models import flat_grad  # noqa: E402

from losses import LOSSES  # noqa: E402
from train import optimizer_step  # noqa: E402

SHARES = {0: [[0, 1, 2], [3], [4]], 1: [[5, 6], [7], []]}


def main(out, accelerator):
    assert accelerator.num_processes == 2
    for dtype in DTYPES:
        for name, loss in LOSSES.items():
            module, data = module_for(loss, dtype=dtype), data_for(loss, dtype=dtype)
            policy = accelerator.prepare(module)
            shares = SHARES[accelerator.process_index]
            batches = [batch_for(data, members) for members in shares]
            units, metrics = optimizer_step(accelerator, policy, loss, loss.config(), batches)
            stem = f"{name}-{dtype}-{accelerator.process_index}"
            torch.save(flat_grad(module), out / f"{stem}.pt")
            (out / f"{stem}.json").write_text(json.dumps({"units": units, "metrics": metrics}))


run_rank(main)
