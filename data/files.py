"""Files that a user names, opened only where they are files, and no larger than makes sense."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

from data.errors import NO_INPUT, USAGE, InputError

SMALL = 4 << 20  # bytes: of a template or a configuration, which a person writes


def check_file(path: Path, who: str = "", exit_code: int = NO_INPUT) -> None:
    """Raise InputError for a pipe, a socket or a device: it may never answer, or never end.

    What is not there at all is left for whoever opens it to report.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(
            f"{who or path}: not a file but a pipe or a device; write its content to a file, and"
            " give that",
            exit_code,
        )


def read_small(path: Path, who: str, remedy: str) -> str:
    """The text of a file that a person wrote; `who` is the flag and its value, for errors.

    Raises:
        InputError: it cannot be read, is no regular file, has over 4 MiB, or is not UTF-8.
    """
    check_file(path, who)
    try:
        if path.stat().st_size > SMALL:
            raise InputError(f"{who}: over {SMALL >> 20} MiB; is it another file?", USAGE)
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise InputError(f"{who}: not UTF-8; {remedy}", USAGE) from error
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{who}: {reason}; check the path", NO_INPUT) from error


def sha256(path: Path) -> str:
    """Of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 22):
            digest.update(part)
    return digest.hexdigest()
