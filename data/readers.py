"""Read local files row by row, with line numbers.

A row is `(where, columns)`: `("train.jsonl:17", {"prompt": ..., ...})`. Rows are numbered from 1,
as lines are. Local files are never read through `datasets`, which loses bad rows silently. Here
anything that is not a row ends the reading with one line: `file:line:column: reason; what to do`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from data.errors import NO_INPUT, InputError

Found = tuple[str, dict[str, object]]  # where, columns


class CsvRow(dict[str, object]):
    """A row whose values are all strings, numbers too."""


def read_file(path: Path) -> Iterator[Found]:
    """The rows of a .jsonl, .json, .csv or .parquet file, with the labels beside it if any."""
    if path.suffix not in READERS:
        raise InputError(f"{path}: not a {', '.join(READERS)} file; convert it to one of these")
    return _read(path)


def _read(path: Path) -> Iterator[Found]:
    rows: Iterable[Found] = READERS[path.suffix](path)
    labels_path = path.with_name(f"{path.stem}-labels.lst")
    if path.suffix == ".jsonl" and labels_path.exists():
        rows = _label(list(rows), path, labels_path)
    empty = True
    for found in rows:
        empty = False
        yield found
    if empty:
        raise InputError(f"{path}:1: the file has no rows; give at least one")


def _label(rows: list[Found], path: Path, labels_path: Path) -> list[Found]:
    """PIQA's official layout: one label a line, in a file beside the rows."""
    labels = [line.strip() for line in _lines(_text(labels_path))]
    for number, label in enumerate(labels, 1):
        if label not in ("0", "1"):
            raise InputError(f"{labels_path}:{number}: {short(label)} is not 0 or 1; correct it")
    if len(labels) != len(rows):
        raise InputError(
            f"{labels_path}:{min(len(labels), len(rows)) + 1}: {len(labels)} labels for"
            f" {len(rows)} rows of {path}; give one label a row"
        )
    for (where, row), label in zip(rows, labels, strict=True):
        if "label" in row:
            raise InputError(f"{where}:label: also given by {labels_path}; remove one of the two")
        row["label"] = int(label)
    return rows


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})", NO_INPUT) from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The codec reports positions after the BOM it skipped.
        at = error.start + (3 if raw.startswith(b"\xef\xbb\xbf") else 0)
        line, column = raw.count(b"\n", 0, at) + 1, at - raw.rfind(b"\n", 0, at)
        raise InputError(
            f"{path}:{line}:{column}: byte 0x{raw[at]:02x} is not UTF-8; save the file as UTF-8"
        ) from error


def _lines(text: str) -> list[str]:
    """Lines end with a line feed and nothing else: JSON strings may hold U+2028 as it is."""
    lines = text.split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _json(text: str, where: str, cut: bool = False) -> object:
    """Parse one JSON value; `where` is its line, `cut` if the file ends without ending the line."""

    def no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
        columns = dict(pairs)
        if len(columns) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"{where}:{short(twice)}: the key is there twice; keep one")
        return columns

    try:
        return json.loads(text, object_pairs_hook=no_duplicates)
    except json.JSONDecodeError as error:
        fix = "the file ends inside this row, get it again" if cut else "write one object a line"
        raise InputError(f"{where}:{error.colno}: not JSON ({error.msg}); {fix}") from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, brackets 10,000 deep
        raise InputError(f"{where}:1: not usable JSON ({error}); correct the line") from error


def _object(value: object, where: str) -> Found:
    if isinstance(value, dict):
        return where, value
    raise InputError(f"{where}:1: {short(value)} is not an object; give {{column: value, ...}}")


def _read_jsonl(path: Path) -> Iterator[Found]:
    text = _text(path)
    lines = _lines(text)
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        if not line.strip():
            raise InputError(f"{where}:1: the line is blank; remove it")
        cut = number == len(lines) and not text.endswith("\n")
        yield _object(_json(line, where, cut), where)


def _read_json(path: Path) -> Iterator[Found]:
    """One array of objects, or one object a line."""
    text = _text(path)
    if not text.lstrip().startswith("["):
        yield from _read_jsonl(path)
        return
    try:
        json.loads(text)  # for the line of what is not JSON
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}:{error.lineno}:{error.colno}: not JSON ({error.msg}); correct the array"
        ) from error
    except (ValueError, RecursionError):
        pass  # reported below
    rows = _json(text, str(path))
    assert isinstance(rows, list)
    for number, row in enumerate(rows, 1):
        yield _object(row, f"{path}:row {number}")


def _read_csv(path: Path) -> Iterator[Found]:
    text = _text(path)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{path}:{line}: a NUL character; remove it")
    csv.field_size_limit(2**31 - 1)  # the limit is the module's; its default refuses 128 KiB
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    line = 1
    try:
        for cells in reader:
            where = f"{path}:{line}"
            line = reader.line_num + 1
            if not cells:
                raise InputError(f"{where}:1: the line is blank; remove it")
            if not header:
                header = cells
                if len(set(header)) < len(header):
                    raise InputError(f"{where}: a column is there twice; rename one of the two")
            elif len(cells) != len(header):
                raise InputError(
                    f"{where}:{min(len(cells), len(header)) + 1}: {len(cells)} fields, but the"
                    f' header has {len(header)}; put texts with commas in "quotes"'
                )
            else:
                yield where, CsvRow(zip(header, cells, strict=True))
    except csv.Error as error:
        raise InputError(f"{path}:{line}: not CSV ({error}); correct the quotes") from error


def _read_parquet(path: Path) -> Iterator[Found]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{path}:row {number}", row
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}:row {number + 1}: not readable as parquet ({reason}); write the file again"
        ) from error


READERS: dict[str, Callable[[Path], Iterator[Found]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def short(value: object) -> str:
    """A value on one line, cut to what a message can hold."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
