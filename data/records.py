"""Read preference and prompt/completion data: training and held-out records, and a line on both.

`data/sources.py` finds the rows, `data/readers.py` reads them, `data/rows.py` says what they mean,
and `data/unread.py` what of them nothing reads.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence

from data.errors import USAGE, InputError
from data.formats import mapped, row_format_of
from data.options import ReadOptions
from data.readers import CsvRow
from data.rows import Record, make_record
from data.sources import Part, open_source, open_sources
from data.unread import Unread

NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
MOST_SKIPPED = 0.2  # of a part's rows, by --bad_rows skip


def load_data(
    data: str,
    eval_data: str | None = None,
    *,
    pairs: bool,
    options: ReadOptions = ReadOptions(),  # noqa: B008  (frozen)
    seed: int = 0,
    eval_rows: int | None = None,
) -> tuple[list[Record], list[Record], str]:
    """Return (training records, held-out records, one line on where each came from).

    `data` and `eval_data`: pocket, piqa, files, directories or data sets of the hub, several by
    commas, each with an optional weight. The held-out records are those of `eval_data`, else the
    validation parts of `data`, else a random tenth of `data`, drawn by `seed` so that rows of one
    prompt stay together. `eval_rows` bounds their number: the first so many, or the size of the
    random share (else at most 500). `pairs`: every row must have a rejected response.

    Raises:
        InputError: a row that cannot be used (with `bad_rows="skip"`: too many of them), or a
            column that was meant to be read and is not.
    """
    if eval_rows is not None and eval_rows < 1:
        raise InputError(f"{eval_rows} held-out rows are none; give at least 1", USAGE)
    sources = open_sources(data, split=options.split, pairs=pairs)
    parts = [source.train for source in sources if source.train is not None]
    if not parts:
        assert sources[0].heldout is not None
        name = sources[0].heldout.name
        raise InputError(f"{name}: there is no training part beside it; add one")
    weights = [source.weight for source in sources if source.train is not None]
    read = [_read_part(part, pairs, options) for part in parts]
    heldout_parts = [source.heldout for source in sources if source.heldout is not None]
    if eval_data is not None:
        others = open_sources(eval_data, pairs=pairs)
        heldout_parts = [part for s in others if (part := s.heldout or s.train) is not None]
    heldout: list[Record] = []
    if not heldout_parts:
        where = "; ".join(name for _, name in read)
        everything = [record for records, _ in read for record in records]
        _, heldout = hold_out(everything, eval_rows or 500, seed)
        drawn = {id(record) for record in heldout}
        read = [([r for r in records if id(r) not in drawn], name) for records, name in read]
    train = [
        record
        for (records, name), weight in zip(read, weights, strict=True)
        for record in weighted(records, weight, f"{seed}/{name}")
    ]
    description = "train: " + _counted(train, [n for _, n in read], weights)
    if not heldout_parts:
        description = f"train: {_rows(len(train))} of {where}"
        description += f"; held out: {_rows(len(heldout), 'random ')} of the same, seed {seed}"
    else:
        found = [_read_part(part, pairs, options) for part in heldout_parts]
        heldout = [record for records, _ in found for record in records]
        description += "; held out: "
        if eval_rows is not None and eval_rows < len(heldout):
            heldout = heldout[:eval_rows]
            description += "the first "
        description += _counted(heldout, [n for _, n in found], [1.0] * len(found))
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
    return _read_part(part, True, ReadOptions())


def _read_part(part: Part, pairs: bool, options: ReadOptions) -> tuple[list[Record], str]:
    """The records of a part, and its name with what is to be said of them."""
    records: list[Record] = []
    skipped: list[InputError] = []
    unread: Unread | None = None
    for where, found in part.rows:
        row = mapped(found, options, where)
        if isinstance(found, CsvRow):
            row = _numbers(row)
        if unread is None:  # the first row's columns make the format of all
            unread = Unread(row_format_of(row, where, pairs, options), options)
        try:
            record = make_record(row, where, unread.row_format, options)
            unread.check(found, record)
            records.append(record)
        except InputError as error:
            if options.bad_rows == "stop":
                raise
            skipped.append(error)
    assert unread is not None, "a file without rows is refused when it is read"
    check_skipped(skipped, len(records), part.name)
    unread.finish(part.name)
    notes = [*part.notes, *unread.note()]
    if repeated := len(records) - len({_key(record) for record in records}):
        notes.append(_rows(repeated, "duplicate "))
    if unanswered := sum(record.unanswered for record in records):
        ends = "ends" if unanswered == 1 else "end"
        notes.append(f"{_rows(unanswered)} {ends} with a turn that nobody answers, not trained")
    notes += skipped_note(skipped)
    return records, part.name + (f" ({'; '.join(notes)})" if notes else "")


def check_skipped(skipped: Sequence[object], kept: int, name: str) -> None:
    """Raise InputError if more rows were skipped than a few."""
    if len(skipped) > MOST_SKIPPED * (len(skipped) + kept):
        raise InputError(
            f"{name}: {len(skipped):,} of {len(skipped) + kept:,} rows are bad, too many to skip"
            f" (more than {MOST_SKIPPED:.0%}); the first: {skipped[0]}"
        )


def skipped_note(skipped: Sequence[object]) -> list[str]:
    """What to say of rows that were left out: how many, and why the first was."""
    return [f"{_rows(len(skipped), 'bad ')} skipped, first: {skipped[0]}"] if skipped else []


def weighted(records: Sequence[Record], weight: float, seed: str) -> list[Record]:
    """`weight` times as many records: every one so often, and a random share for the rest."""
    whole, rest = divmod(weight, 1)
    drawn = random.Random(seed).sample(range(len(records)), round(rest * len(records)))
    return [*records] * int(whole) + [records[i] for i in sorted(drawn)]


def _counted(records: Sequence[Record], names: Sequence[str], weights: Sequence[float]) -> str:
    """`1,138 rows of a.jsonl`, or of several parts with their weights."""
    said = [n if w == 1 else f"{w:g} x {n}" for n, w in zip(names, weights, strict=True)]
    return f"{_rows(len(records))} of {', '.join(said)}"


def _numbers(row: dict[str, object]) -> dict[str, object]:
    """A csv file has only strings: make numbers of the columns that need them."""
    row = dict(row)
    if row.get("label") in ("0", "1"):
        row["label"] = int(str(row["label"]))
    if "margin" in row:
        margin = str(row["margin"])
        if not margin:
            row["margin"] = None
        elif NUMBER.fullmatch(margin):  # Python would take 1_0 and other alphabets' digits too
            row["margin"] = float(margin)
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


def _key(record: Record) -> bytes:
    """A hash: a million of them fit into memory where the texts would not a second time."""
    texts = repr((record.prompt, record.chosen, record.rejected))
    return hashlib.blake2b(texts.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _rows(count: int, adjective: str = "") -> str:
    return f"{count:,} {adjective}row{'s' * (count != 1)}"
