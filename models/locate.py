"""Which directory or hub id a model's name means, without torch: --dry_run asks too."""

from __future__ import annotations

import difflib
import json
import os
import re
from pathlib import Path

from data.errors import NO_INPUT, InputError
from data.pocket import BASE_DIR

ADAPTER = "adapter_config.json"


def locate(name: str, flag: str = "--model") -> str:
    """The directory of a local model, or the hub id as given.

    Raises:
        InputError: `name` looks like a path and nothing is there, or it holds an adapter or GGUF.
    """
    if name == "pocket":
        return str(BASE_DIR)
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        if (path / ADAPTER).exists():
            raise InputError(f"{flag} {name}: {adapter_line(path / ADAPTER)}")
        if not (path / "config.json").exists():
            if any(file.suffix.lower() == ".gguf" for file in path.iterdir()):
                why = (
                    "GGUF files, which are for inference; give the original safetensors checkpoint"
                )
                raise InputError(f"{flag} {name}: {why}")
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


def adapter_line(file: Path) -> str:
    """What to do with an adapter, from its adapter_config.json."""
    try:
        base = json.loads(file.read_text("utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        base = None
    return (
        f"a LoRA adapter of {base or 'a base model'}: merge it first (peft: merge_and_unload), then"
        " give the merged directory"
    )
