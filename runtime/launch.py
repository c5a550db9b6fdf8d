"""Checks of how the program was started, for the ways that go wrong in silence.

`accelerate launch --cpu --num_processes 2` starts one process. `torchrun` on a machine without a
GPU, without ACCELERATE_USE_CPU, starts several that each believe to be alone. SIGTERM to
`accelerate launch` leaves the trainer running.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from dataclasses import asdict

from accelerate import Accelerator
from accelerate.tracking import filter_trackers
from accelerate.utils import LoggerType

from data.errors import USAGE, InputError
from runtime.config import TrainConfig

RIGHT_WAY = (
    "on a machine without a GPU start N processes with"
    " `ACCELERATE_USE_CPU=true torchrun --nproc_per_node N train.py ...`"
)


def die_with_launcher() -> None:
    """Ask Linux for SIGTERM when the parent dies, so that no trainer is left running alone."""
    if sys.platform == "linux" and "ACCELERATE_MIXED_PRECISION" in os.environ:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def make_accelerator(config: TrainConfig) -> Accelerator:
    """The Accelerator of a run: no gradient accumulation of its own, and the trackers asked for.

    Raises:
        InputError: a tracker that Accelerate does not know or that is not installed (Accelerate
            itself would leave it out without a word).
    """
    trackers = config.report_to.split(",") if config.report_to else []
    for name in trackers:
        if name not in [tracker.value for tracker in LoggerType]:
            known = ", ".join(t.value for t in LoggerType if t != LoggerType.ALL)
            raise InputError(f"--report_to {name}: choose from {known}", USAGE)
        if not filter_trackers([name], logging_dir=config.output_dir):
            raise InputError(f"--report_to {name} is not installed: pip install {name}", USAGE)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=1,
        log_with=trackers or None,
        project_dir=config.output_dir,
    )
    if trackers and not config.dry_run:
        values = {k: v for k, v in asdict(config).items() if v is not None}
        accelerator.init_trackers("alignment-losses", values)
    return accelerator


def check_launch(accelerator: Accelerator) -> None:
    """Raise InputError when the processes that were asked for are not those that run together."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        raise InputError(
            f"{started} processes were started, but each runs alone; {RIGHT_WAY}", USAGE
        )
    if "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ:
        # accelerate's launcher sets the port for several processes, then starts only one on CPU
        raise InputError(
            f"several processes were asked for and one was started; {RIGHT_WAY}", USAGE
        )
