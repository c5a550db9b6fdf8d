"""JSON files that are whole or not there at all, whenever their writer is killed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Write beside the file and rename: a reader never sees half of it."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, "utf-8")
    os.replace(partial, path)


def write_json(path: Path, content: object) -> None:
    write_whole(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A file's object, or {} where there is none yet."""
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return content
    except (OSError, ValueError):
        return {}
