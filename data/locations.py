"""What `--data` names: one or several, each with a configuration, a split and a weight if given.

    a.jsonl,b.jsonl=2    dir:config[split]    org/name:config@revision[train,heldout]    dir/*.jsonl

A path that exists as it is written is that path, whatever characters it has.
"""

from __future__ import annotations

import difflib
import glob
import math
import os
import re
from pathlib import Path
from typing import NamedTuple

from data.archives import file_name
from data.errors import NO_INPUT, USAGE, InputError
from data.readers import READERS
from data.selection import parse_split

WORLDS = ("pocket", "piqa")  # names of our own, never of files
_HUB = re.compile(r"(?:[\w.-]+/)?[\w.-]+(?::[\w.-]+)?(?:@[\w./-]+)?")
_WITH_SPLIT = re.compile(r"(?P<name>.+)\[(?P<split>[\w. ,-]*)\]")


class Location(NamedTuple):
    """One of the things that `--data` names."""

    kind: str  # "path", "glob" or "name": pocket, piqa or a data set of the hub
    name: str
    config: str | None = None  # of a directory; a name of the hub has its own in it
    split: tuple[str, str | None] | None = None
    weight: float = 1.0


def locate(data: str) -> list[Location]:
    """The locations in `data`, separated by commas."""
    # not between brackets: a comma there is of [train,heldout]
    tokens = re.split(r",(?![^\[\]]*\])", data)
    found = []
    while tokens:
        # the longest run of tokens that is there as it is written: a name may have commas in it
        for size in range(len(tokens), 0, -1):
            text = ",".join(tokens[:size])
            location = _existing(text) or _existing(text.strip())
            if location is None and size == 1:
                location = _absent(text.strip(), data)
            if location is not None:
                found.append(location)
                tokens = tokens[size:]
                break
    return found


def _existing(text: str) -> Location | None:
    """The location if its files are there; a weight, a split and a configuration are split off."""
    location = _on_disk(text)
    if location is None and "=" in text:
        name, _, weight = text.rpartition("=")
        if _is_weight(weight) and (location := _on_disk(name)):
            return location._replace(weight=_weight(weight, text))
    return location


def _on_disk(text: str) -> Location | None:
    if location := _path(text):
        return location
    if glob.has_magic(text) and glob.glob(os.path.expanduser(text), recursive=True):
        return Location("glob", text)
    if (found := _WITH_SPLIT.fullmatch(text)) and (location := _on_disk(found["name"])):
        return location._replace(split=parse_split(found["split"], text))
    return None


def _path(text: str) -> Location | None:
    if text in WORLDS:
        return None
    if text and os.path.exists(os.path.expanduser(text)):
        return Location("path", text)
    folder, _, config = text.rpartition(":")
    if (
        folder
        and config
        and not set(config) & set("[,=")
        and os.path.isdir(os.path.expanduser(folder))
    ):
        return Location("path", folder, config)
    return None


def _is_weight(text: str) -> bool:
    """Whether what follows the last = was meant as a weight, and not as the end of a path."""
    path = "/" in text or glob.has_magic(text) or file_name(Path(text)).suffix in READERS
    return not path


def _weight(text: str, item: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight > 0):
        raise InputError(
            f"--data {item}: the weight {text!r} is not a number above 0; give one, as in =2", USAGE
        )
    return weight


def _absent(text: str, data: str) -> Location:
    """What is not there as files: a name, or else a mistake."""
    if not text:
        raise InputError(f"--data {data!r}: an empty name; give names between commas", USAGE)
    name, weight = text, 1.0
    if "=" in text and _is_weight(text.rpartition("=")[2]):
        name, _, given = text.rpartition("=")
        weight = _weight(given, text)
    split = None
    if found := _WITH_SPLIT.fullmatch(name):
        name, split = found["name"], parse_split(found["split"], text)
    if glob.has_magic(name):
        return Location("glob", name, None, split, weight)  # which says that nothing matches
    if _is_path(name):
        raise InputError(f"no such file or directory: {name}; {_guess(name)}", NO_INPUT)
    return Location("name", name, None, split, weight)


def _is_path(name: str) -> bool:
    """Whether a name that does not exist was meant as a path rather than a data set of the hub."""
    meant = name.startswith((".", "~")) or file_name(Path(name)).suffix in READERS
    in_folder = "/" in name and Path(name.split("/")[0]).exists()
    return meant or not _HUB.fullmatch(name) or in_folder


def _guess(name: str) -> str:
    path = Path(os.path.expanduser(name))
    if " " in name and all(_on_disk(part) for part in name.split()):
        return f"write several with commas: {','.join(name.split())}"
    near = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, near, n=1)
    return f"did you mean {path.parent / close[0]}?" if close else "check the path"
