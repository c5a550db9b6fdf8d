"""The one exception for what a user gave us and we cannot use."""

from __future__ import annotations

import re

LONGEST = 1200  # characters of a message

# The exit codes a run can end with (the numbers follow sysexits.h where it has one).
USAGE = 2  # a flag or a configuration value
BAD_DATA = 65  # a row of a data file
NO_INPUT = 66  # a file, directory or model that is not there
UNAVAILABLE = 69  # needs the network, and there is none
LOST = 70  # another process of the run was killed, stopped, or is gone
NO_MEMORY = 71  # out of memory, and a micro-batch cannot be cut further
CANNOT_CREATE = 73  # the run directory is taken or cannot be written
IO_ERROR = 74  # the disk is full or failed
INTERRUPTED = 75  # stopped by a signal; the same command goes on
NOT_FINITE = 76  # loss or gradient stayed NaN or infinite
UNSAFE = 77  # a model that would run code of its own: pickled weights, auto_map


class InputError(Exception):
    """Something the user gave cannot be used; `str(error)` is the one line they see.

    The line says where (`file:line:column` for a data row), what is wrong, and what to do.
    `exit_code` is the process's exit status, one of the constants of this module.
    """

    def __init__(self, message: str, exit_code: int = BAD_DATA) -> None:
        super().__init__(one_line(message))
        self.exit_code = exit_code


def one_line(message: str) -> str:
    """A message for a terminal and for logs: no line breaks, no escape codes, no end without end.

    It quotes what a user gave, which may hold all of these.
    """
    plain = "".join(c if c.isprintable() else repr(c)[1:-1] for c in without_secrets(message))
    return plain if len(plain) <= LONGEST else f"{plain[: LONGEST - 300]} ... {plain[-300:]}"


def without_secrets(text: str) -> str:
    """A text with `***` for user and password of the URLs in it: `https://user:token@host/`."""
    return re.sub(r"(?<=://)[^/@\s]+(?=@)", "***", text)
