"""Numbers of flags that the run could not compute with, though Python can."""

from __future__ import annotations

import math
import struct

from data.errors import USAGE, InputError
from runtime.config import Run

MOST_REPEATS = 256  # of a row in one step, of a prompt in one rollout
MOST = 2**31 - 1  # of steps, rows, tokens; some libraries count in 32 bits


def check_numbers(run: Run) -> None:
    """Raise InputError for a flag that is 0 or infinite in the precision of the weights, or huge.

    A learning rate of 1e-60 is 0 in float32, and a beta of 1e60 infinite.
    """
    for config in (run.train, run.loss):
        for name, value in vars(config).items():
            if isinstance(value, int) and not abs(value) <= MOST:
                raise InputError(f"--{name} {value}: at most {MOST:,}", USAGE)
            if isinstance(value, float) and run.train.dtype == "float32":
                held = _float32(value)
                if math.isinf(held) or (held == 0) != (value == 0):
                    raise InputError(f"--{name} {value} is {held:g} in float32", USAGE)


def check_repeats(flag: str, size: int, rows: int) -> None:
    """Raise InputError for a step or a rollout that takes every row very often."""
    if size > MOST_REPEATS * rows:
        raise InputError(
            f"{flag} {size}: each of the {rows:,} rows would be taken {size // rows:,} times at"
            f" once; give at most {MOST_REPEATS * rows:,}",
            USAGE,
        )


def _float32(value: float) -> float:
    try:
        return float(struct.unpack("f", struct.pack("f", value))[0])
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")
