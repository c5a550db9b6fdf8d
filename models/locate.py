"""Which directory or hub id a model's name means, without torch: --dry_run asks too."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from data.errors import NO_INPUT, InputError
from data.pocket import BASE_DIR


def locate(name: str, flag: str = "--model") -> str:
    """The directory of a local model, or the hub id as given.

    Raises:
        InputError: `name` looks like a path and nothing is there.
    """
    if name == "pocket":
        return str(BASE_DIR)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise InputError(f"{flag} {name}: no config.json in this directory", NO_INPUT)
        return str(path.resolve())
    hub_id = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and name[0] not in "./~"
    if path.exists():
        raise InputError(f"{flag} {name}: a file, and a directory is needed", NO_INPUT)
    if not hub_id or (name.count("/") and path.parent.exists()):
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, near, n=1)
        guess = f"did you mean {path.parent / close[0]}?" if close else "check the path"
        raise InputError(f"{flag} {name}: no such directory; {guess}", NO_INPUT)
    return name
