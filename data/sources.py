"""Where rows come from: the pocket world, files, directories, and data sets of the hub."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.errors import NO_INPUT, UNAVAILABLE, USAGE, InputError
from data.folders import Folder, listed, open_folder, open_glob, settle
from data.locations import Location, locate
from data.readers import Found, check_name, files_of, read_file
from data.selection import choose, counterpart, parse_split, split_name
from data.shards import as_given, in_order, sets, shard, suffixes


class Part(NamedTuple):
    """One split: its name for messages, its rows, read when iterated over, and what to tell.

    `notes` are complete when the rows have been read: a file may say how its rows lie in it.
    """

    name: str
    rows: Iterable[Found]
    notes: Sequence[str] = ()
    files: Sequence[Path] = ()  # that the rows are read from; none for a data set of the hub


class Source(NamedTuple):
    """The rows to train on and those held out, and how often the former count among others."""

    train: Part | None
    heldout: Part | None
    weight: float = 1.0


class _Opened(NamedTuple):
    source: Source
    read: list[tuple[str, object]]  # (name, identity) of each file or split in it
    alone: list[Path]  # files that were given by their own name


def open_sources(data: str, *, split: str | None = None, pairs: bool = True) -> list[Source]:
    """What `--data` names: pocket, piqa, files, directories, globs, data sets of the hub.

    Several are separated by commas, each with a weight if given: `a.jsonl=2,b.jsonl`. `split` is
    the one to train on, or `TRAIN,HELDOUT`, where a name has no `[split]` of its own. Without one,
    `train` is, else what suits the loss, with pairs of responses or without.
    """
    asked = parse_split(split) if split is not None else None
    opened = [_open(location, location.split or asked, pairs) for location in locate(data)]
    alone = [file for one in opened for file in one.alone]
    for group in sets(alone):
        in_order(dict.fromkeys(group))
    names: dict[object, str] = {}
    for one in opened:
        for name, identity in one.read:
            if identity in names:
                first = names[identity]
                other = f" and {name}" if name != first else ""
                raise InputError(
                    f"--data: {first}{other} twice in one run; name it once, with a weight"
                    f" if it is to count more ({name}=2)",
                    USAGE,
                )
            names[identity] = name
    return [one.source for one in opened]


def open_source(name: str, split: str | None = None, pairs: bool = True) -> Source:
    """The one source that `name` is."""
    sources = open_sources(name, split=split, pairs=pairs)
    if len(sources) > 1:
        raise InputError(f"{name}: {len(sources)} sources; give one", USAGE)
    return sources[0]


def _open(location: Location, asked: tuple[str, str | None] | None, pairs: bool) -> _Opened:
    if location.kind == "name":
        opened = _named(location.name, asked, pairs)
    elif location.kind == "glob":
        opened = _folder(open_glob(location.name), asked, pairs)
    else:
        path = Path(os.path.expanduser(location.name))
        if path.is_dir():
            opened = _folder(open_folder(path, location.config), asked, pairs)
            # a card may give one file to two splits, and the hub's cache links equal files to one
            once = {identity: (name, identity) for name, identity in opened.read}
            opened = opened._replace(read=list(once.values()))
        else:
            check_name(path)
            opened = _folder(Folder(str(path), {"train": [path]}, []), asked, pairs)
            opened = opened._replace(alone=[path])
    return opened._replace(source=opened.source._replace(weight=location.weight))


def _folder(folder: Folder, asked: tuple[str, str | None] | None, pairs: bool) -> _Opened:
    """The splits of a directory, a glob or a file, chosen by name."""
    names = [*folder.splits, *folder.absent]
    numbered = any(shard(file).total for files in folder.splits.values() for file in files)
    loose = folder.inferred and not numbered  # shards are named by their split, as on the hub
    train, heldout = choose(folder.name, names, asked, pairs, loose=loose)
    notes = [*folder.notes]
    if heldout in folder.absent and not (asked and asked[1]):
        notes.append(
            f"{folder.name}: files of the split {heldout} are not here ({folder.absent[heldout]})"
        )
        heldout = counterpart(train, [*folder.splits]) if train else None
    for split in (train, heldout):
        if split in folder.absent:
            raise InputError(
                f"{folder.name}: files of the split {split} are not here ({folder.absent[split]});"
                " get them, or choose another with --split",
                NO_INPUT,
            )
    notes += _not_read(folder.splits, (train, heldout))
    parts: list[Part | None] = []
    read: list[tuple[str, object]] = []
    for split in (train, heldout):
        if split is None:
            parts.append(None)
            continue
        files = _files(folder, split)
        own = notes if split == (train or heldout) else []
        if len(sets(files)) > 1:
            own.append(f"{split}: {len(files)} files, {listed(_short(files))}")
        all_files = [one for file in files for one in files_of(file)]
        parts.append(Part(_label(files, folder, split), _rows(files, own), own, all_files))
        read += [(str(file), _identity(file)) for file in files]
    return _Opened(Source(parts[0], parts[1]), read, [])


def _files(folder: Folder, split: str) -> list[Path]:
    files = folder.splits[split]
    if len(files) == 1 and str(files[0]) == folder.name:
        return files  # a file by its own name: its set is looked at with all others
    return settle(folder.name, files) if folder.inferred else list(as_given(files))


def _rows(files: Sequence[Path], notes: list[str]) -> Iterator[Found]:
    return (found for file in files for found in read_file(file, notes))


def _label(files: Sequence[Path], folder: Folder, split: str) -> str:
    first = files[0]
    if len(files) == 1:
        return str(first)
    if len(sets(files)) == 1 and shard(first).total:
        return f"{first.parent}/{shard(first).base}-*{suffixes(first)}"
    whole = not folder.inferred or glob.has_magic(folder.name)
    one = len(folder.splits) == 1 and not folder.absent
    return folder.name if one and whole else f"{folder.name}[{split}]"


def _short(files: Sequence[Path]) -> list[str]:
    """The names of the files below the folder that they all lie in."""
    root = os.path.commonpath([file.parent for file in files])
    return [os.path.relpath(file, root) for file in files]


def _identity(file: Path) -> object:
    try:
        info = file.stat()
    except OSError:  # told when it is read
        return str(file)
    return info.st_dev, info.st_ino


def _named(name: str, asked: tuple[str, str | None] | None, pairs: bool) -> _Opened:
    if name == "pocket":
        found: Mapping[str, Iterable[Mapping[str, Any]]] = _pocket()
    else:
        name = "baber/piqa" if name == "piqa" else name
        found = _hub(name)
    chosen = choose(name, list(found), asked, pairs)
    notes = _not_read(found, chosen)
    parts: list[Part | None] = []
    for split in chosen:
        label = f"{name}[{split}]"
        own = notes if split == (chosen[0] or chosen[1]) else []
        parts.append(Part(label, _numbered(label, found[split]), own) if split else None)
    read = [(f"{name}[{split}]", (name, split)) for split in chosen if split]
    return _Opened(Source(parts[0], parts[1]), [*read], [])


def _not_read(splits: Iterable[str], chosen: tuple[str | None, str | None]) -> list[str]:
    """A note on the splits that could have been trained on; further held-out ones need none."""
    names = [s for s in splits if s not in chosen and ((n := split_name(s)) is None or n.trains)]
    return [f"splits not read: {', '.join(names)}"] if names else []


def _numbered(label: str, rows: Iterable[Mapping[str, Any]]) -> Iterator[Found]:
    return ((f"{label}:row {number}", dict(row)) for number, row in enumerate(rows, 1))


def _pocket() -> Mapping[str, list[dict[str, str]]]:
    from data import pocket

    return {"train": pocket.train_rows(), "heldout": pocket.heldout_rows()}


def _hub(name: str) -> Mapping[str, Iterable[Mapping[str, Any]]]:
    """A data set of the hub, `name`, `name:config` or `name@revision`, through `datasets`."""
    import datasets

    path, _, revision = name.partition("@")
    path, _, config = path.partition(":")
    folder = path.split("/")[-1] + (f":{config}" if config else "")
    try:
        found: Mapping[str, Iterable[Mapping[str, Any]]] = datasets.load_dataset(
            path, config or None, revision=revision or None
        )
    except (ConnectionError, TimeoutError) as error:
        raise InputError(
            f"{path}: the hub cannot be reached; on a connected machine run `hf download"
            f" --repo-type dataset {path} --local-dir {path.split('/')[-1]}`,"
            f" then give ./{folder} as the data",
            UNAVAILABLE,
        ) from error
    except Exception as error:  # not there, private, a config that is not, a script: it says which
        reason = " ".join(str(error).split())
        if listing := re.search(r"[Aa]vailable(?: configs)?: \[(.*?)\]", reason):
            configs = [one.strip(" '\"") for one in listing[1].split(",")]
            missing = f"no configuration {config!r}" if config else "several configurations"
            raise InputError(
                f"{path}: {missing}; it has {', '.join(configs)}: give one, as {path}:{configs[0]}",
                NO_INPUT,
            ) from error
        raise InputError(
            f"{path}: the hub does not give this data set ({reason}); check the name", NO_INPUT
        ) from error
    return found
