"""Read preference and prompt/completion data: training and held-out records, and a line on both.

`data/sources.py` finds the rows, `data/readers.py` reads them, `data/rows.py` says what they mean.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Literal

from data.errors import USAGE, InputError
from data.readers import CsvRow
from data.rows import COLUMNS, Record, Text, make_record, row_format_of
from data.sources import Part, open_source

__all__ = ["Record", "Text", "hold_out", "load_data", "load_heldout"]


def load_data(
    data: str,
    eval_data: str | None = None,
    *,
    pairs: bool,
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
    eval_rows: int | None = None,
    bad_rows: Literal["stop", "skip"] = "stop",
) -> tuple[list[Record], list[Record], str]:
    """Return (training records, held-out records, one line on where each came from).

    `data` and `eval_data`: pocket, piqa, a file, a directory or a data set of the hub. The
    held-out records are those of `eval_data`, else the validation part of `data`, else a random
    tenth of `data`, drawn by `seed` so that rows of one prompt stay together. `eval_rows` bounds
    their number: the first so many, or the size of the random share (else at most 500).
    `pairs`: every row must have a rejected response.
    """
    unknown = set(columns or {}) - COLUMNS
    if unknown:
        raise InputError(
            f"no column of ours is called {', '.join(sorted(unknown))};"
            f" rename to one of {', '.join(sorted(COLUMNS))}",
            USAGE,
        )
    if eval_rows is not None and eval_rows < 1:
        raise InputError(f"{eval_rows} held-out rows are none; give at least 1", USAGE)

    def read(part: Part) -> tuple[list[Record], str]:
        return _read_part(part, pairs, columns or {}, bad_rows)

    source = open_source(data)
    if source.train is None:
        assert source.heldout is not None
        raise InputError(f"{source.heldout.name}: there is no training part beside it; add one")
    train, description = read(source.train)
    part = source.heldout
    if eval_data is not None:
        other = open_source(eval_data)
        part = other.heldout or other.train
    if part is None:
        train, heldout = hold_out(train, eval_rows or 500, seed)
        description = f"train: {_rows(len(train))} of {description}"
        description += f"; held out: {_rows(len(heldout), 'random ')} of the same, seed {seed}"
    else:
        heldout, heldout_description = read(part)
        description = f"train: {_rows(len(train))} of {description}; held out: "
        if eval_rows is not None and eval_rows < len(heldout):
            heldout = heldout[:eval_rows]
            description += "the first "
        description += f"{_rows(len(heldout))} of {heldout_description}"
    seen = {_key(record) for record in train}
    overlap = sum(_key(record) in seen for record in heldout)
    return (
        train,
        heldout,
        description + (f" ({overlap:,} of them also in train)" if overlap else ""),
    )


def load_heldout(data: str) -> tuple[list[Record], str]:
    """The held-out part of `data`, or all of it if it has no parts; and a line on where it is from.

    Every row has two responses, and the first bad one raises InputError.
    """
    source = open_source(data)
    part = source.heldout or source.train
    assert part is not None
    return _read_part(part, True, {}, "stop")


def _read_part(
    part: Part, pairs: bool, columns: Mapping[str, str], bad_rows: Literal["stop", "skip"]
) -> tuple[list[Record], str]:
    records: list[Record] = []
    skipped: list[InputError] = []
    row_format: tuple[str, ...] | None = None
    for where, found in part.rows:
        row = found | {ours: found[theirs] for ours, theirs in columns.items() if theirs in found}
        if isinstance(found, CsvRow):
            row = _numbers(row)
        try:
            row_format = row_format or row_format_of(row, where, pairs, columns)
            records.append(make_record(row, where, row_format, columns))
        except InputError as error:
            if bad_rows == "stop" or row_format is None:
                raise
            skipped.append(error)
    if not records:
        raise InputError(f"{part.name}: no usable row, the first says: {skipped[0]}")
    notes = []
    if repeated := len(records) - len({_key(record) for record in records}):
        notes.append(_rows(repeated, "duplicate "))
    if skipped:
        notes.append(f"{_rows(len(skipped), 'bad ')} skipped, the first {skipped[0]}")
    return records, part.name + (f" ({'; '.join(notes)})" if notes else "")


def _numbers(row: dict[str, object]) -> dict[str, object]:
    """A csv file has only strings: make numbers of the columns that need them."""
    row = dict(row)
    if row.get("label") in ("0", "1"):
        row["label"] = int(str(row["label"]))
    if "margin" in row:
        try:
            row["margin"] = float(str(row["margin"])) if row["margin"] != "" else None
        except ValueError:
            pass  # the check names it
    return row


def hold_out(records: Sequence[Record], most: int, seed: int) -> tuple[list[Record], list[Record]]:
    """Split off a random tenth, at least 1 and at most `most` rows, whole prompts where it can."""
    if len(records) < 2:
        raise InputError(f"{records[0].where}: one row cannot be split; give held-out rows too")
    want = min(most, max(1, len(records) // 10))
    rows_of: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        rows_of.setdefault(repr(record.prompt), []).append(i)
    groups = list(rows_of.values())
    random.Random(seed).shuffle(groups)
    chosen: set[int] = set()
    for group in groups:
        if len(chosen) + len(group) <= want:
            chosen.update(group)
    if not chosen:  # every prompt has more rows than that: split one
        chosen.update(groups[0][:want])
    train = [record for i, record in enumerate(records) if i not in chosen]
    return train, [record for i, record in enumerate(records) if i in chosen]


def _key(record: Record) -> str:
    return repr((record.prompt, record.chosen, record.rejected))


def _rows(count: int, adjective: str = "") -> str:
    return f"{count:,} {adjective}row{'s' * (count != 1)}"
