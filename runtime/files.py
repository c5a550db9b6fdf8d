"""Files that are whole or not there at all, whenever their writer is killed or the power fails."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Write beside the file and rename: a reader never sees half of it."""
    partial = _partial(path)
    # What stands there may be a link that was laid: a new file is made, never followed.
    partial.unlink(missing_ok=True)
    with open(partial, "x", encoding="utf-8") as file:
        file.write(text)
    sync(partial)
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
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def sync(path: Path) -> None:
    """Have the disk hold a file, or a folder's names, before anything is built on it."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def by_umask(file: Path) -> None:
    """Let a file be read by whom the umask lets: safetensors writes for the owner alone."""
    mask = os.umask(0o077)
    os.umask(mask)
    file.chmod(0o666 & ~mask)


def sync_tree(folder: Path) -> None:
    """`by_umask` and `sync` of every file below a folder, and `sync` of the folders."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            by_umask(Path(parent, name))
            sync(Path(parent, name))
        sync(Path(parent))
