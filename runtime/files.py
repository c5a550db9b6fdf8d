"""Files that are whole or not there at all, whenever their writer is killed."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Write beside the file and rename: a reader never sees half of it."""
    partial = _partial(path)
    partial.write_text(text, "utf-8")
    os.replace(partial, path)


def check_writable(path: Path) -> None:
    """Make the folder, and raise the OSError that `write_whole` would raise after all the work."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    _partial(path).touch()
    _partial(path).unlink(missing_ok=True)  # another rank may have been quicker


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def write_json(path: Path, content: object) -> None:
    write_whole(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A file's object; {} where there is none yet, or none that can be read."""
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return content
    except (OSError, ValueError):
        return {}
