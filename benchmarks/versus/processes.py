"""A run in a process of its own, of train.py or of TRL, and what is kept of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.runs import TRAIN, step_lines
from benchmarks.versus.cells import PPO, SAME_METRICS, Cell
from benchmarks.versus.summary import Run
from runtime.files import read_json, write_json

CHILD = Path(__file__).with_name("trl_child.py")
# What would have the two sides use the processor differently.
DROPPED = ("OMP_", "GOMP_", "KMP_", "MKL_", "PYTHONPATH", "ACCELERATE_")
POLL_SECONDS = 0.05


class Failed(RuntimeError):
    """A run that ended otherwise than well, with the end of what it said."""


@dataclass(frozen=True)
class Files:
    """What a cell's runs read."""

    model: str  # for the reward loss with a head, so that both sides start from the same one
    ours: Path
    trl: Path
    heldout: Path
    reward: str  # a directory: ppo's judge, and where its critic starts


def environment(folder: Path, threads: int | None) -> dict[str, str]:
    """The same for both sides; data sets are tokenised anew in every run."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(DROPPED)}
    env |= {"OMP_WAIT_POLICY": "PASSIVE", "HF_DATASETS_CACHE": str(folder / "datasets")}
    return env | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})


def probe(folder: Path, threads: int | None) -> dict[str, Any]:
    """The machine's sgemm, its threads, and the memory of train.py's imports."""
    command = [sys.executable, "-m", "benchmarks.versus.probe"]
    done = subprocess.run(
        command, cwd=TRAIN.parent, env=environment(folder, threads), capture_output=True, text=True
    )
    if done.returncode:
        raise Failed(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_ours(
    cell: Cell, files: Files, folder: Path, *, made: int, seed: int, threads: int | None
) -> Run:
    """A run of train.py, with what `probe` finds right before it."""
    machine = probe(folder, threads)
    out = folder / "run"
    flags = ["--model", files.model, "--data", str(files.ours), "--eval_data", str(files.heldout)]
    flags += ["--output_dir", str(out), *cell.our_flags(made, seed)]
    if cell.kind == "ppo":
        flags += ["--reward", files.reward]
    command = [*launcher(cell, sys.executable, machine["threads"]), str(TRAIN), *flags]
    clock = watch(
        command, environment(folder, threads), folder, out / "metrics.jsonl", '"grad_norm"'
    )
    steps = step_lines(out)
    every = PPO["ppo_epochs"] if cell.kind == "ppo" else 1  # optimizer steps a rollout
    lengths = [x for line in steps if (x := line.get("rollout/response_length")) is not None]
    return {
        **clock,
        "ends": [line["seconds"] for line in steps][every - 1 :: every],
        "losses": [line["loss"] for line in steps],
        "metrics": {name: steps[0][name] for name in SAME_METRICS.get(cell.loss, {})},
        "response_length": sum(lengths) / len(lengths) if lengths else None,
        "peak_bytes": read_json(out / "summary.json")["peak_memory_bytes"],
        "precision": "bf16" if cell.row == "bf16" else "float32",
        **machine,
    }


def run_trl(
    cell: Cell,
    files: Files,
    folder: Path,
    python: str,
    *,
    arguments: Mapping[str, Any],
    threads: int | None,
) -> Run:
    """A run of `trl_child.py` by another environment's Python."""
    settings = {
        "loss": cell.loss,
        "model": files.model,
        "data": str(files.trl),
        "reward": files.reward,
        "output_dir": str(folder / "run"),
        "arguments": dict(arguments),
        "save": cell.kind == "epoch",  # as train.py does
        "steps": str(folder / "steps.jsonl"),
        "result": str(folder / "result.json"),
    }
    write_json(folder / "settings.json", settings)
    count = threads or os.cpu_count() or 1
    if cell.kind == "launch":
        count = probe(folder, threads)["threads"]
    command = [*launcher(cell, python, count), str(CHILD), str(folder / "settings.json")]
    steps = folder / "steps.jsonl"
    clock = watch(command, environment(folder, threads), folder, steps, '"at"')
    result = read_json(folder / "result.json")
    ends = [json.loads(line)["at"] for line in steps.read_text("utf-8").splitlines()]
    names = SAME_METRICS.get(cell.loss, {}).values()
    result["metrics"] = {name: result["metrics"][name] for name in names}
    return {**clock, "ends": [end - ends[0] for end in ends], **result}


def launcher(cell: Cell, python: str, threads: int) -> list[str]:
    """How a script is started: by Accelerate's launcher where the start is what is measured."""
    if cell.kind != "launch":
        return [python]
    # Without the number of threads it would set one.
    options = {"processes": 1, "machines": 1, "cpu_threads_per_process": threads}
    flags = [part for name, value in options.items() for part in (f"--num_{name}", str(value))]
    fixed = ["--cpu", "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [python, "-m", "accelerate.commands.launch", *fixed, *flags]


def watch(
    command: Sequence[str], env: Mapping[str, str], folder: Path, lines: Path, mark: str
) -> dict[str, float]:
    """Run a command to its end: seconds to the first line with `mark` in a file, and to the end.

    Raises:
        Failed: it ended with another code than 0.
    """
    began = time.time()
    with open(folder / "output.txt", "w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command,
            env=dict(env),
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while process.poll() is None and not _has(lines, mark):
                time.sleep(POLL_SECONDS)
            first = time.time() - began
            process.wait()
        finally:  # with what a launcher has started
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        said = (folder / "output.txt").read_text("utf-8", errors="replace")[-2000:]
        raise Failed(f"{said}\nended with {process.returncode}")  # -9: no memory was left
    return {"first_step": first, "finished": time.time() - began}


def _has(path: Path, mark: str) -> bool:
    return path.exists() and mark in path.read_text("utf-8")
