"""What is checked before any weight is loaded: whether the run could begin, or go on."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.errors import BAD_DATA, IO_ERROR, USAGE, InputError
from losses import LOSSES
from models.checkpoint import attempt, files_numbers
from models.locate import locate
from runtime.checkpoints.identity import check_same
from runtime.config import Run
from runtime.directory import RunDirectory, check_directory
from runtime.files import read_json
from runtime.guards.outputs import say
from runtime.report import versions
from runtime.sources.base import Plan

ADAMW = 3  # a checkpoint holds the weights and two moments of each


def identity_of(run: Run, plan: Plan, processes: int) -> dict[str, Any]:
    """Of what config.json holds, what makes a run the same run: see `check_same`."""
    return {
        "train": asdict(run.train),
        "loss": asdict(run.loss),
        "processes": processes,
        "identity": plan.identity,
        "versions": versions(),
    }


def check_unchanged(run: Run, plan: Plan, processes: int, directory: RunDirectory) -> None:
    """Where there is a run to go on with, raise InputError if it is another one."""
    if directory.unfinished:
        before = read_json(directory.path / "config.json")
        allowed = (run.train.allow_changed or "").split(",")
        for line in check_same(before, identity_of(run, plan, processes), allowed):
            say(f"changed since the run began: {line}")


def preflight(run: Run) -> list[str]:
    """Raise the InputError that the run itself would end with; lines of what was found.

    The headers of all weight files are read, the weights are not.
    """
    config = run.train
    check_directory(Path(run.output_dir), overwrite=config.overwrite)
    numbers = 0
    for flag in ("model", "ref_model", "reward"):
        name = getattr(config, flag, None) or getattr(run.loss, flag, None)
        if name is None or (flag == "reward" and ":" in name) or not Path(locate(name)).is_dir():
            continue
        found = attempt(name, f"--{flag}", "its weights", files_numbers)
        if not found:
            raise InputError(f"--{flag} {name}: no safetensors files in this directory", BAD_DATA)
        numbers = sum(found.values()) if flag == "model" else numbers
    if not numbers:
        return []
    return [_room(run, numbers)]


def check_warmup(run: Run, steps: int) -> None:
    """Raise InputError for a warm-up that ends after the run, which never has its peak rate."""
    warmup = run.train.warmup
    if warmup >= 1 and warmup >= steps:
        raise InputError(
            f"--warmup {warmup:g} is no shorter than the run's {steps} steps, which would never"
            " have the full learning rate; give a share below 1, or fewer steps",
            USAGE,
        )
    waits = getattr(run.loss, "critic_warmup", 0)
    if waits:
        rollouts = -(-steps * run.train.batch_size // (run.loss.ppo_epochs * run.loss.rollout_size))
        if waits >= rollouts:
            raise InputError(
                f"--critic_warmup {waits}: the run has {rollouts} rollouts, and the policy would"
                " learn in none of them",
                USAGE,
            )


def _room(run: Run, numbers: int) -> str:
    """Compare what a run writes at most with the disk; a line for the user."""
    size = 8 if run.train.dtype == "float64" else 4
    trained = numbers * (
        2 if "rollouts" in LOSSES[run.train.loss].needs(run.loss) else 1
    )  # with PPO's critic
    checkpoints = run.train.keep + 1  # one is written before the oldest is removed
    models = 2 if run.train.keep_best is not None else 1
    needed = size * trained * (ADAMW * checkpoints + models)
    out = Path(run.output_dir).absolute()
    there = next(path for path in (out, *out.parents) if path.exists())
    free = shutil.disk_usage(there).free
    line = (
        f"{needed / 1e9:.1f} GB on the disk at most ({checkpoints} checkpoints of"
        f" {size * trained * ADAMW / 1e9:.1f} GB, and the model)"
    )
    if needed > free:
        raise InputError(
            f"--output_dir {run.output_dir}: {line}, and {free / 1e9:.1f} GB are free; give another"
            " disk, or a lower --keep",
            IO_ERROR,
        )
    return f"disk: {line}; {free / 1e9:.1f} GB are free"
