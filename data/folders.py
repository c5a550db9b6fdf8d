"""The splits of a directory: what `save_to_disk` wrote, or a data set as the hub keeps it.

In this order: a snapshot of the hub's cache, `dataset_dict.json` or `state.json` of `save_to_disk`,
the `configs` of README.md, and else the names of the files, at the top, in `data/`, or below.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.archives import file_name
from data.cards import leads_out, matching, pick, read_configs
from data.errors import NO_INPUT, InputError
from data.files import check_file
from data.readers import READERS, is_data, is_metadata
from data.selection import TRAIN_WORDS, split_name
from data.shards import in_order, sets, shard

MOST_NAMES = 8  # files that one note names


class Folder(NamedTuple):
    """The files of each split of a directory or a glob."""

    name: str  # for messages
    splits: dict[str, list[Path]]
    notes: list[str]
    absent: dict[str, str] = {}  # splits that it declares, and the files that are not there
    inferred: bool = False  # whether the splits are named by the names of files


def open_folder(path: Path, config: str | None = None) -> Folder:
    """The splits of a directory, those of one configuration if it has several."""
    name = str(path)
    path = _snapshot(path)
    if config is None and (path / "dataset_dict.json").is_file():
        return _saved_dict(name, path)
    saved = None if config else _saved(path)
    if saved is not None:
        unread = _unread(path, scan(path), saved)
        return Folder(name, {"train": saved}, unread)
    configs, default, note = read_configs(path)
    notes = [note] if note else []
    if not configs:
        if config not in (None, "default"):
            if not (path / config).is_dir():
                raise InputError(
                    f"{name}: no configuration {config!r}; give {name} alone", NO_INPUT
                )
            return open_folder(path / config)
        return _inferred(name, path, notes)
    chosen = pick(path, configs, default, config)
    if others := [other.name for other in configs if other.name != chosen.name]:
        notes.append(f"configurations not read: {', '.join(others)}")
    if not chosen.patterns:
        return _inferred(name, chosen.folder, notes)
    found = {split: matching(chosen, split) for split in chosen.patterns}
    # datasets too refuses a split of which one pattern has no file
    absent = {split: ", ".join(missing) for split, (_, missing) in found.items() if missing}
    if not any(files for files, _ in found.values()):
        raise InputError(
            f"{name}: README.md's configuration {chosen.name} has the files"
            f" {', '.join(absent.values())}, and none is here; get them, or give the files",
            NO_INPUT,
        )
    declared = [f for c in configs for split in c.patterns for f in matching(c, split)[0]]
    notes += _unread(path, scan(path), declared)
    whole = {split: files for split, (files, missing) in found.items() if not missing}
    return Folder(name, whole, notes, absent)


def open_glob(pattern: str) -> Folder:
    """The files that match, as one source; by splits where their names tell them apart."""
    found = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
    if "__" not in pattern:  # __pycache__ and the like
        found = [name for name in found if f"{os.sep}__" not in name]
    if not found:
        raise InputError(f"no file matches {pattern}; check the pattern", NO_INPUT)
    paths = [Path(name) for name in found]
    files = [path for path in paths if is_data(path) and not path.is_dir()]
    if not files:
        raise InputError(
            f"{pattern}: none of the {len(found)} matches is a data file; match files,"
            f" as in {pattern.rstrip('/')}/*.jsonl",
            NO_INPUT,
        )
    root = Path(os.path.expanduser(pattern)).parent
    while glob.has_magic(str(root)):
        root = root.parent
    holding = {parent for file in files for parent in file.parents}
    others = [p for p in paths if p not in {*files, *holding} and not is_metadata(p)]
    notes = _unread(root, others, [])
    splits = _by_name(root, files)
    trains = {bool(parsed and parsed.trains) for s in splits if (parsed := split_name(s))}
    if len(trains) < 2:  # all of one kind: the pattern says which are meant
        return Folder(pattern, {"train": files}, notes, inferred=True)
    read = [file for split in splits.values() for file in split]
    return Folder(pattern, splits, notes + _unread(root, files, read), inferred=True)


def scan(folder: Path) -> list[Path]:
    """All data files below, nothing hidden; links to directories are followed once."""
    found, seen = [], set()
    for base, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(base)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__")))
        found += [Path(base, name) for name in sorted(names) if is_data(Path(name))]
    return found


def settle(name: str, files: Iterable[Path]) -> list[Path]:
    """The files of one split in order; in one folder no two may be the same table twice."""
    groups = sets(_as_saved(files))
    first: dict[tuple[Path, str], list[Path]] = {}
    order = list(READERS)
    for group in sorted(groups, key=lambda g: _rank(g[0], order)):
        key = group[0].parent, shard(group[0]).base.lower()
        twice = first.setdefault(key, group)
        if twice is not group:
            both = f"{twice[0].name} and {group[0].name}"
            raise InputError(f"{name}: both {both}; name the one to read", NO_INPUT)
    return in_order(file for group in groups for file in group)


def _rank(file: Path, order: Sequence[str]) -> int:
    suffix = file_name(file).suffix
    return order.index(suffix) if suffix in order else len(order)


def _snapshot(path: Path) -> Path:
    """The files of a repository in the hub's cache, `datasets--ORG--NAME`; else the path itself."""
    snapshots = path / "snapshots"
    if not path.name.startswith(("datasets--", "models--")) or not snapshots.is_dir():
        return path
    main = path / "refs" / "main"
    revision = main.read_text("utf-8", errors="replace").strip() if main.is_file() else ""
    if revision and (snapshots / revision).is_dir():
        return snapshots / revision
    there = sorted(child for child in snapshots.iterdir() if child.is_dir())
    if len(there) == 1:
        return there[0]
    names = ", ".join(child.name for child in there) or "none"
    raise InputError(f"{snapshots}: which snapshot is not clear ({names}); give one", NO_INPUT)


def _json(path: Path) -> Any:
    check_file(path)
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not readable ({reason}); save the data set again") from error


def _saved(folder: Path) -> list[Path] | None:
    """The files of a `Dataset.save_to_disk`, in its order."""
    if not (folder / "state.json").is_file():
        return None
    state = _json(folder / "state.json")
    files = state.get("_data_files") if isinstance(state, dict) else None
    if not isinstance(files, list):
        return None
    if any(state.get(key) for key in ("_indices_data_files", "_indices_files")):
        raise InputError(
            f"{folder}: saved with a selection of rows (an old version of datasets); save it again"
        )
    try:
        names = [str(entry["filename"]) for entry in files]
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / 'state.json'}: not readable; save it again") from error
    if outside := [name for name in names if leads_out(name)]:
        raise InputError(
            f"{folder / 'state.json'}: {outside[0]} is not in its directory; save it again"
        )
    paths = [folder / name for name in names]
    for path in paths:
        if not path.exists():
            raise InputError(
                f"{path}: state.json names it, and it is not here; copy it too", NO_INPUT
            )
    if not paths:
        raise InputError(f"{folder}: the saved data set has no files; save one with rows", NO_INPUT)
    return paths


def _as_saved(files: Iterable[Path]) -> list[Path]:
    """The files with those of each folder that `save_to_disk` wrote as its state names them."""
    by_folder: dict[Path, list[Path]] = {}
    for file in files:
        by_folder.setdefault(file.parent, []).append(file)
    return [file for folder, own in by_folder.items() for file in _saved(folder) or own]


def _saved_dict(name: str, folder: Path) -> Folder:
    saved = _json(folder / "dataset_dict.json")
    names = saved.get("splits") if isinstance(saved, dict) else None
    if not isinstance(names, list) or not names:
        raise InputError(f"{folder / 'dataset_dict.json'}: no splits in it; save it again")
    splits: dict[str, list[Path]] = {}
    absent: dict[str, str] = {}
    for split in map(str, names):
        files = None if leads_out(split) else _saved(folder / split)
        if files is None:
            absent[split] = str(folder / split / "state.json")
        else:
            splits[split] = files
    read = [file for files in splits.values() for file in files]
    return Folder(name, splits, _unread(folder, scan(folder), read), absent)


def _inferred(name: str, folder: Path, notes: list[str]) -> Folder:
    files = scan(folder)
    top = [file for file in files if file.parent == folder]
    data = [file for file in files if file.parent == folder / "data"]
    rest = [file for file in files if file not in {*top, *data}]
    splits: dict[str, list[Path]] = {}
    for level in (top, data, rest):  # what is deeper is only looked at where it is needed
        for split, found in _by_name(folder, level).items():
            splits.setdefault(split, []).extend(found)
        if any((parsed := split_name(split)) and parsed.trains for split in splits):
            break
    if not splits:
        level = top or data or rest
        level = [file for file in level if file_name(file).suffix != ".txt"] or level
        if len(sets(level)) != 1:
            several = f", or give {level[0].parent}/*{level[0].suffix} for all" if level else ""
            raise InputError(
                f"{name}: no {TRAIN_WORDS[0]}{{{','.join(READERS)}}} in this directory;"
                f" name the file itself{several}",
                NO_INPUT,
            )
        splits = {"train": level}
    read = [file for found in splits.values() for file in found]
    return Folder(name, splits, notes + _unread(folder, files, read), inferred=True)


def _by_name(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """The files by the split that their name, or else a folder they lie in, has in it.

    In each folder `train.jsonl` goes before `my-train.jsonl` and `train-1.jsonl`.
    """
    found: dict[tuple[Path, str], tuple[list[Path], list[Path]]] = {}
    for file in files:
        base, _, total = shard(file)
        split, exact = _split_of(base)
        on_the_hub = base.startswith(split) if split else file.parent == folder / "data"
        if total and on_the_hub:  # data/calibration-00000-of-00001.parquet
            split, exact = base, True
        for part in reversed(file.parent.relative_to(folder).parts):
            split, exact = (split, exact) if split else (_split_of(part)[0], True)
        if split:
            found.setdefault((file.parent, split), ([], []))[not exact].append(file)
    splits: dict[str, list[Path]] = {}
    for (_, split), (exactly, others) in found.items():
        splits.setdefault(split, []).extend(exactly or others)
    return splits


def _split_of(name: str) -> tuple[str, bool]:
    """(the split that a name has in it, or "", whether it is nothing but the split's name)."""
    parsed = split_name(name)
    if parsed is None:
        return "", False
    family = "" if not parsed.family.strip("-._ 0123456789") else parsed.family
    split = f"{parsed.word}_{family}" if family else parsed.word
    return split, name.lower() == split.lower()


def _unread(folder: Path, files: Iterable[Path], read: Iterable[Path]) -> list[str]:
    """A note that names the data files which no split reads."""
    known = set(read)
    names = [str(f.relative_to(folder)) for f in files if f not in known]
    return [f"not read: {listed(names)}"] if names else []


def listed(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
