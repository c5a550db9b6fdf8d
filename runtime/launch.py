"""How the program was started: checks for the ways that go wrong in silence, and the Accelerator.

`accelerate launch --cpu --num_processes 2` starts one process. `torchrun` on a machine without a
GPU, without ACCELERATE_USE_CPU, starts several that each believe to be alone. SIGTERM to
`accelerate launch` leaves the trainer running, and so does SIGKILL to torchrun. FSDP, DeepSpeed and
the like would give each process a part of the model, and the loop takes it for the whole: to sample
from, say, or to save.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import USAGE, InputError
from runtime.config import TrainConfig
from runtime.files import read_json

if TYPE_CHECKING:  # imported below where it is needed: `die_with_launcher` comes before torch
    from accelerate import Accelerator

SHARDED = {  # what accelerate's launcher sets, and for what
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}
PRECISIONS = {
    "no": "float32",
    "bf16": "bfloat16 in the forward, float32 weights",
    "fp16": "float16 in the forward, float32 weights",
}
COUNTS = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")  # by launchers
RIGHT_WAY = (
    "on a machine without a GPU start N processes with"
    " `ACCELERATE_USE_CPU=true torchrun --nproc_per_node N train.py ...`"
)


def die_with_launcher() -> None:
    """Ask Linux for SIGTERM when the parent dies, so that no trainer is left running alone.

    Of accelerate's launcher and of torchrun. First of all a process does: a launcher that died
    before cannot be seen to die.
    """
    launched = {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"} & os.environ.keys()
    if sys.platform == "linux" and launched:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def make_accelerator(config: TrainConfig) -> Accelerator:
    """The Accelerator of a run: no gradient accumulation of its own, and the trackers asked for.

    Raises:
        InputError: a tracker that Accelerate does not know or that is not installed, or a precision
            that would not be used (Accelerate itself would leave them out without a word); or a
            launch that cuts the model into parts.
    """
    for variable in COUNTS:
        if not os.environ.get(variable, "0").isdecimal():
            raise InputError(
                f"{variable}={os.environ[variable]} in the environment is no number; unset it, or"
                " start by a launcher that sets it",
                USAGE,
            )
    for variable, name in SHARDED.items():
        if os.environ.get(variable, "").lower() == "true":
            raise InputError(
                f"accelerate launch was given {name}, and here every process needs the whole model:"
                " launch with `accelerate launch --multi_gpu --num_processes N train.py ...` (DDP),"
                " and with a --config_file that says no other",
                USAGE,
            )
    from accelerate import Accelerator
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import GradientAccumulationPlugin, LoggerType

    trackers = config.report_to.split(",") if config.report_to else []
    installed = [LoggerType.ALL.value, *(tracker.value for tracker in get_available_trackers())]
    for name in trackers:
        if name not in [tracker.value for tracker in LoggerType]:
            known = ", ".join(t.value for t in LoggerType if t != LoggerType.ALL)
            raise InputError(f"--report_to {name}: choose from {known}", USAGE)
        if name not in installed:
            raise InputError(f"--report_to {name} is not installed: pip install {name}", USAGE)
    accelerator = Accelerator(
        mixed_precision=precision_of(config),
        # as a plugin: given as a number, the launcher's environment would override it
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        log_with=trackers or None,
        project_dir=config.output_dir,
    )
    if config.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise InputError("--mixed_precision fp16 needs a GPU; on a CPU take bf16", USAGE)
    return accelerator


def precision_of(config: TrainConfig) -> str:
    """--mixed_precision by Accelerate's name, with auto decided by one rank for all.

    A run that is gone on with keeps what it began with: another timing could say otherwise.

    Raises:
        InputError: the launcher was given another.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if config.mixed_precision != "auto":
        if launched not in ("no", config.mixed_precision):
            given = f"accelerate launch was given {launched}"
            raise InputError(f"{given}; give --mixed_precision {launched} to train.py too", USAGE)
        return config.mixed_precision
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list, parse_flag_from_env

    from models.checkpoint import read_config
    from models.precision import Precision, choose_precision
    from runtime.guards.outputs import say

    # What the Accelerator would make, and takes over.
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    found = Precision("no", "")
    if launched != "no":
        found = Precision(launched, "as accelerate launch was told")
    elif before := _begun_with(config):
        found = Precision(before, "as the run began")
    elif state.is_main_process:
        width = getattr(read_config(config.model).get_text_config(), "hidden_size", 0)
        found = choose_precision(state.device, width, config.dtype)
    values = [found]
    if state.num_processes > 1:
        broadcast_object_list(values)
    found = Precision(*values[0])
    say(f"precision: {PRECISIONS[found.name]} ({found.reason})")
    return found.name


def _begun_with(config: TrainConfig) -> str | None:
    """The precision of the unfinished run that this one goes on with, if there is one."""
    if config.overwrite or config.dry_run:
        return None
    before = read_json(Path(str(config.output_dir), "config.json"))  # a finished run is refused
    value = before.get("train", {}).get("mixed_precision")
    return value if value in PRECISIONS else None


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
