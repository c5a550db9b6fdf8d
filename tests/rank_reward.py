"""Run by torchrun from test_reward_columns.py: what a reward function is asked on two ranks."""

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from ranks import run_rank  # noqa: E402
from test_reward_columns import asked_in_a_run  # noqa: E402


def main(out, accelerator):
    assert accelerator.num_processes == 2
    (out / f"{accelerator.process_index}.json").write_text(json.dumps(asked_in_a_run()))


run_rank(main)
