"""A run of train.py in a process of its own, and its steps, for the scripts that time them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.record import ROOT

TRAIN = ROOT / "train.py"


def train(
    flags: Sequence[str], out: Path, env: Mapping[str, str] | None = None, *, ranks: int = 1
) -> None:
    """`python train.py FLAGS` into the run directory `out`; CalledProcessError if it fails."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command = [sys.executable, *(launcher if ranks > 1 else []), str(TRAIN), *flags]
    command += ["--output_dir", str(out)]
    subprocess.run(command, check=True, capture_output=True, env=env)


def step_lines(out: Path) -> list[dict[str, Any]]:
    """Of a run's metrics.jsonl the line of every optimizer step."""
    lines = (out / "metrics.jsonl").read_text("utf-8").splitlines()
    return [line for line in map(json.loads, lines) if "grad_norm" in line]


def step_ends(out: Path) -> list[float]:
    """Seconds from the start of the training to the end of every step."""
    return [line["seconds"] for line in step_lines(out)]


def durations(ends: Sequence[float], warm_up: int = 1) -> list[float]:
    """Seconds of every step after the first `warm_up`; the very first has no beginning."""
    return [end - begin for begin, end in pairwise(ends[warm_up - 1 :])]


def write_rows(path: Path, rows: Iterable[Mapping[str, str]]) -> str:
    """Write a jsonl file, a row at a time; its path, as a flag takes it."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(row)}\n" for row in rows)
    return str(path)
