"""How OpenMP's threads wait: the time of a step on a quiet machine, and beside a busy process.

    python -m benchmarks.threads benchmarks/results/threads.json --model DIR --data DIR

Runs in turns (A B B A) with what train.py sets, threads that soon sleep, and with libgomp's own
default, which spins. The machine does nothing else meanwhile, or the quiet figures are of
something else.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.record import origin
from benchmarks.runs import durations, step_ends, train

OPENMP = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")
SETTINGS = {"sleeping": {}, "spinning": {"GOMP_SPINCOUNT": "300000"}}
WARM_UP = 2  # steps that are not counted
NEIGHBOUR = """
import torch
a = torch.randn(1024, 1024)
torch.set_num_threads(2)
while True:
    a @ a
"""


def step_seconds(flags: list[str], setting: str) -> float:
    """Median of the time of a step, of one run in a process of its own."""
    env = {name: value for name, value in os.environ.items() if name not in OPENMP}
    with tempfile.TemporaryDirectory() as folder:
        train(flags, Path(folder), env | SETTINGS[setting])
        ends = step_ends(Path(folder))
    return statistics.median(durations(ends, WARM_UP))


@contextmanager
def neighbour(busy: bool) -> Iterator[None]:
    """With a process beside that multiplies matrices on two threads."""
    process = subprocess.Popen([sys.executable, "-c", NEIGHBOUR]) if busy else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    flags = ["--loss", "dpo", "--model", given.model, "--data", given.data, "--batch_size", "8"]
    flags += ["--max_steps", "8"]
    found: dict[str, dict[str, list[float]]] = {}
    for number in range(given.rounds):
        order = list(SETTINGS) if number % 2 == 0 else list(reversed(SETTINGS))
        for busy in (False, True):
            where = found.setdefault("busy" if busy else "quiet", {name: [] for name in SETTINGS})
            for setting in order:
                with neighbour(busy):
                    where[setting].append(step_seconds(flags, setting))
        print(json.dumps(found), flush=True)
    ratios = {
        where: statistics.median(
            a / b for a, b in zip(times["sleeping"], times["spinning"], strict=True)
        )
        for where, times in found.items()
    }
    about: dict[str, Any] = {
        **origin("benchmarks.threads"),
        "seconds a step": found,
        "sleeping / spinning, median": ratios,
        "busy / quiet, sleeping": statistics.median(found["busy"]["sleeping"])
        / statistics.median(found["quiet"]["sleeping"]),
    }
    given.results.write_text(json.dumps(about, indent=2) + "\n", "utf-8")
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
