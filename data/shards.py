"""Files that are one table in pieces: `train-00000-of-00003.parquet` and the like."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from data.archives import file_name
from data.errors import NO_INPUT, InputError

_SHARD = re.compile(
    r"(?P<base>(?:.*[-_.])?)(?P<index>\d+)(?P<of>[-_]of[-_])(?P<count>\d+)(?:[-_.].*)?"
)


class Shard(NamedTuple):
    """What the name of a file says of it; `total` is None for a file that is whole."""

    base: str  # the name without suffixes and without the number
    number: int
    total: int | None


def shard(path: Path) -> Shard:
    stem = file_name(path).stem
    found = _SHARD.fullmatch(stem)
    if found is None or int(found["count"]) == 0:
        return Shard(stem, 0, None)
    return Shard(found["base"][:-1], int(found["index"]), int(found["count"]))


def suffixes(path: Path) -> str:
    """`.jsonl.gz` of `train.jsonl.gz`, as it is written."""
    return path.name[len(file_name(path).stem) :]


def sets(files: Iterable[Path]) -> list[list[Path]]:
    """The files grouped into whole files and sets of shards, each set in the order of its shards.

    Shards of one table lie in one folder and have the same base and suffix.
    """
    groups: dict[tuple[object, ...], list[Path]] = {}
    for file in files:
        base, _, total = shard(file)
        key = (file.parent, base, suffixes(file).lower(), "" if total else file.name)
        groups.setdefault(key, []).append(file)
    return [sorted(group, key=lambda file: (shard(file).number, file.name)) for group in
            groups.values()]  # fmt: skip


def in_order(files: Iterable[Path]) -> list[Path]:
    """The files set by set; a set with a shard missing is refused, naming the first of them."""
    found = sets(files)
    for group in found:
        check_set(group)
    return [file for group in found for file in group]


def as_given(files: Sequence[Path]) -> Sequence[Path]:
    """The files as they are, where something other than their names says the order."""
    for group in sets(files):
        check_set(group)
    return files


def check_set(group: Sequence[Path]) -> None:
    """The shards of one table must be 0 to N-1 of N."""
    first = group[0]
    total = shard(first).total
    if total is None:
        return
    for file in group:
        if shard(file).total != total:
            raise InputError(
                f"{first.parent}: {first.name} and {file.name} are of sets of"
                f" {total} and {shard(file).total} files; keep the files of one set",
                NO_INPUT,
            )
    by_index: dict[int, Path] = {}
    for file in group:
        if (twice := by_index.setdefault(shard(file).number, file)) is not file:
            raise InputError(
                f"{first.parent}: {twice.name} and {file.name} are the same piece; remove one",
                NO_INPUT,
            )
    missing = [index for index in range(total) if index not in by_index]
    if missing:
        raise InputError(
            f"{first.parent / renumbered(first, missing[0])}: {len(missing)} of the {total} files"
            " of its set are missing, this one first; give the directory or a glob that has all"
            " of them, or get them",
            NO_INPUT,
        )
    if len(by_index) > total:
        beyond = by_index[max(by_index)]
        raise InputError(f"{beyond}: numbered beyond its set of {total}; remove it", NO_INPUT)


def renumbered(path: Path, index: int) -> str:
    """The name of another shard of the same set, without the hash that may stand after it."""
    found = _SHARD.fullmatch(file_name(path).stem)
    assert found is not None
    number = str(index).zfill(len(found["index"]))
    return f"{found['base']}{number}{found['of']}{found['count']}{suffixes(path)}"
