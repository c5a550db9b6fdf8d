"""Where rows come from: the pocket world, a file, a directory, or a data set of the hub."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from data.errors import NO_INPUT, UNAVAILABLE, InputError
from data.readers import READERS, Found, read_file


class Part(NamedTuple):
    """One split: its name for messages, and its rows, read when iterated over."""

    name: str
    rows: Iterable[Found]
    notes: tuple[str, ...] = ()


class Source(NamedTuple):
    train: Part | None
    heldout: Part | None
    weight: float = 1.0


def open_sources(data: str, *, split: str | None = None, pairs: bool = True) -> list[Source]:
    return [open_source(data)]


# The first of these that is there; `_prefs` as in UltraFeedback-binarized.
TRAIN = ("train", "train_prefs")
HELDOUT = (
    *("validation", "valid", "dev", "test", "eval"),
    *("validation_prefs", "valid_prefs", "dev_prefs", "test_prefs", "eval_prefs"),
)


def open_source(name: str) -> Source:
    """`pocket`, `piqa`, a file, a directory, or else a data set of the hub."""
    if name == "pocket":
        return _pocket()
    if name == "piqa":
        return _hub("baber/piqa")
    path = Path(name).expanduser()
    if path.is_dir():
        return _directory(path)
    if path.exists():
        return Source(Part(str(path), read_file(path)), None)
    if _is_path(name):
        near = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, near, n=1)
        guess = f"did you mean {path.parent / close[0]}?" if close else "check the path"
        raise InputError(f"no such file or directory: {name}; {guess}", NO_INPUT)
    return _hub(name)


def _is_path(name: str) -> bool:
    """Whether a name that does not exist was meant as a path rather than a data set of the hub."""
    hub = re.fullmatch(r"(?:[\w.-]+/)?[\w.-]+(?::[\w.-]+)?(?:@[\w./-]+)?", name)
    meant = name.startswith((".", "~")) or Path(name).suffix in READERS
    return meant or not hub or ("/" in name and Path(name.split("/")[0]).exists())


def _directory(path: Path) -> Source:
    """Files named after their split, as PIQA's download and the hub's repositories have them."""
    if source := _splits(path):
        return source
    children = sorted(path.iterdir())
    below = {child: found for child in children if child.is_dir() and (found := _splits(child))}
    if len(below) > 1:
        both = " and ".join(map(str, below))
        raise InputError(f"{path}: {both} have data; give one of them", NO_INPUT)
    for source in below.values():
        return source
    files = [file for file in children if file.suffix in READERS]
    if len(files) == 1:
        return Source(Part(str(files[0]), read_file(files[0])), None)
    raise InputError(
        f"{path}: no train{{{','.join(READERS)}}} in this directory; name the file itself", NO_INPUT
    )


def _splits(folder: Path) -> Source | None:
    source = Source(_named(folder, TRAIN), _named(folder, HELDOUT))
    return None if source == (None, None) else source


def _named(folder: Path, names: Iterable[str]) -> Part | None:
    """The file `name.ext`, or the shards `name-00000-of-00002.ext`, of the first name there is."""
    for name in names:
        formats = []
        for suffix in READERS:
            single = folder / f"{name}{suffix}"
            shards = sorted(folder.glob(f"{name}-[0-9]*-of-[0-9]*{suffix}"))
            formats += [[single]] if single.exists() else [shards] if shards else []
        if len(formats) > 1:
            both = " and ".join(files[0].name for files in formats)
            raise InputError(f"{folder}: both {both}; name the one to read", NO_INPUT)
        for files in formats:
            label = str(files[0]) if len(files) == 1 else f"{folder}/{name}-*{files[0].suffix}"
            return Part(label, (found for file in files for found in read_file(file)))
    return None


def _hub(name: str) -> Source:
    """A data set of the hub, `name`, `name:config` or `name@revision`, through `datasets`."""
    import datasets

    path, _, revision = name.partition("@")
    path, _, config = path.partition(":")
    folder = path.split("/")[-1]
    try:
        found = datasets.load_dataset(path, config or None, revision=revision or None)
    except (ConnectionError, TimeoutError) as error:
        raise InputError(
            f"{path}: the hub cannot be reached; on a connected machine run `hf download"
            f" --repo-type dataset {path} --local-dir {folder}`, then give ./{folder} as the data",
            UNAVAILABLE,
        ) from error
    except Exception as error:  # not there, private, a config that is not, a script: it says which
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}: the hub does not give this data set ({reason}); check the name", NO_INPUT
        ) from error

    def part(splits: Iterable[str]) -> Part | None:
        for split in splits:
            if split in found:
                label = f"{name}[{split}]"
                return Part(label, ((f"{label}:row {i}", r) for i, r in enumerate(found[split], 1)))
        return None

    source = Source(part(TRAIN), part(HELDOUT))
    if source == (None, None):
        raise InputError(f"{path}: only the splits {', '.join(found)}; give another data set")
    return source


def _pocket() -> Source:
    from data import pocket

    def part(split: str, rows: Iterable[dict[str, str]]) -> Part:
        label = f"pocket[{split}]"
        return Part(label, ((f"{label}:row {i}", dict(r)) for i, r in enumerate(rows, 1)))

    return Source(part("train", pocket.train_rows()), part("heldout", pocket.heldout_rows()))
