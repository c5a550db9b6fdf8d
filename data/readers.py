"""Read local files row by row, with line numbers.

The format is that of the suffix, in any case, compressed or not (`train.JSONL.gz`). A row is
`(where, columns)`: `("train.jsonl:17", {"prompt": ..., ...})`. Rows are numbered from 1, as lines
are. Local files are never read through `datasets`, which loses bad rows silently. Here anything
that is not a row ends the reading with one line: `file:line:column: reason; what to do`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from data.archives import COMPRESSIONS, check_kind, file_name, unpack
from data.columnar import read_arrow, read_parquet
from data.errors import NO_INPUT, InputError
from data.files import check_file
from data.tables import rows_of_object

Found = tuple[str, dict[str, object]]  # where, columns


class CsvRow(dict[str, object]):
    """A row whose values are all strings, numbers too."""


# Files that describe data and hold none.
METADATA = {
    *("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"),
    *("dataset-metadata.json", "croissant.json"),
}


def is_metadata(path: Path) -> bool:
    """Whether a file is about data and not data, by its name."""
    about = ("readme", "license", "licence", "notice", "requirements", "citation", "changelog")
    name = file_name(path)
    cached = path.name.startswith("cache-") and name.suffix == ".arrow"  # what `datasets` mapped
    by_suffix = name.suffix in (".lst", ".lock", ".metadata")
    text = name.stem.lower() in about and name.suffix in ("", ".md", ".txt")
    return cached or by_suffix or text or path.name.lower() in METADATA


def is_data(path: Path) -> bool:
    """Whether a file holds rows, by its name."""
    hidden = path.name.startswith(".")
    return file_name(path).suffix in READERS and not hidden and not is_metadata(path)


def check_name(path: Path) -> None:
    """Refuse a file that, by its name, cannot be read."""
    if path.name.lower() in METADATA:
        raise InputError(
            f"{path}: this file is about the data and has no rows; give its directory", NO_INPUT
        )
    if file_name(path).suffix not in READERS:
        packed = f" (or one of these with {', '.join(COMPRESSIONS)})"
        raise InputError(
            f"{path}: not a {', '.join(READERS)} file{packed}; convert it to one of these"
        )


def read_file(path: Path, notes: list[str] | None = None) -> Iterator[Found]:
    """The rows of a file, with the labels beside it if any; `notes` gets what there is to say."""
    check_file(path)
    check_name(path)
    return _read(path, [] if notes is None else notes)


def files_of(path: Path) -> list[Path]:
    """The files that `read_file` reads: that one, and its labels if they are beside it."""
    name = file_name(path)
    labels = path.with_name(f"{name.stem}-labels.lst")
    beside = name.suffix in (".jsonl", ".ndjson") and labels.exists()
    return [path, labels] if beside else [path]


def _read(path: Path, notes: list[str]) -> Iterator[Found]:
    rows: Iterable[Found] = READERS[file_name(path).suffix](path, notes)
    for labels_path in files_of(path)[1:]:
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
    raw = unpack(path)
    check_kind(path, raw, None)
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


def _read_jsonl(path: Path, notes: list[str]) -> Iterator[Found]:
    yield from _json_lines(_text(path), path)


def _json_lines(text: str, path: Path) -> Iterator[Found]:
    lines = _lines(text)
    last = max((number for number, line in enumerate(lines, 1) if line.strip()), default=1)
    for number, line in enumerate(lines[:last], 1):
        where = f"{path}:{number}"
        if not line.strip():
            raise InputError(f"{where}:1: the line is blank; remove it")
        cut = number == len(lines) and not text.endswith("\n")
        yield _object(_json(line, where, cut), where)


def _read_json(path: Path, notes: list[str]) -> Iterator[Found]:
    """One array of objects, one object a line, or one object with all rows in it."""
    text = _text(path)
    array = text.lstrip().startswith("[")
    if not array and not _is_one_value(text):
        yield from _json_lines(text, path)
        return
    try:
        json.loads(text)  # for the line of what is not JSON
    except json.JSONDecodeError as error:
        what = "array" if array else "object"
        raise InputError(
            f"{path}:{error.lineno}:{error.colno}: not JSON ({error.msg}); correct the {what}"
        ) from error
    except (ValueError, RecursionError):
        pass  # reported below
    rows = _json(text, str(path))
    if isinstance(rows, dict):
        rows, note = rows_of_object(rows, path)
        if not note:
            first = text[: len(text) - len(text.lstrip())].count("\n") + 1
            yield _object(rows[0], f"{path}:{first}")
            return
        notes.append(f"{path}: {note}")
    assert isinstance(rows, list)
    for number, row in enumerate(rows, 1):
        yield _object(row, f"{path}:row {number}")


def _is_one_value(text: str) -> bool:
    """Whether the text is one object, over however many lines, and not one object a line."""
    lines = [line for line in _lines(text) if line.strip()]
    if not lines or not lines[0].lstrip().startswith("{"):
        return False
    if len(lines) == 1:
        return text.rstrip().endswith("}")
    try:
        json.loads(lines[0])
    except (ValueError, RecursionError):
        # a first line that ends in the middle of a value: `{` or `{"data": [`
        return not lines[0].rstrip().endswith("}")
    return False


def _read_csv(path: Path, notes: list[str]) -> Iterator[Found]:
    yield from _cells(path, ",", "commas")


def _read_tsv(path: Path, notes: list[str]) -> Iterator[Found]:
    yield from _cells(path, "\t", "tabs")


def _cells(path: Path, delimiter: str, plural: str) -> Iterator[Found]:
    text = _text(path)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{path}:{line}: a NUL character; remove it")
    csv.field_size_limit(2**31 - 1)  # the limit is the module's; its default refuses 128 KiB
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    line = 1
    blank = ""  # where the first blank line is; blank lines may end the file
    try:
        for cells in reader:
            where = f"{path}:{line}"
            line = reader.line_num + 1
            white = not any(cell.strip() for cell in cells) and len(cells) < max(2, len(header))
            if white and not (len(header) == 1 and cells == [""]):  # `""` is a cell
                blank = blank or where
                continue
            if blank:
                raise InputError(f"{blank}:1: the line is blank; remove it")
            if not header:
                header = cells
                if len(set(header)) < len(header):
                    raise InputError(f"{where}: a column is there twice; rename one of the two")
            elif len(cells) != len(header):
                raise InputError(
                    f"{where}:{min(len(cells), len(header)) + 1}: {len(cells)} fields, but the"
                    f' header has {len(header)}; put texts with {plural} in "quotes"'
                )
            else:
                yield where, CsvRow(zip(header, cells, strict=True))
    except csv.Error as error:
        raise InputError(f"{path}:{line}: not CSV ({error}); correct the quotes") from error


def _read_txt(path: Path, notes: list[str]) -> Iterator[Found]:
    """Each line that is not blank is a row, with the one column `text`."""
    for number, line in enumerate(_lines(_text(path)), 1):
        if line.strip():
            yield f"{path}:{number}", {"text": line.removesuffix("\r")}


READERS: dict[str, Callable[[Path, list[str]], Iterator[Found]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": lambda path, notes: read_parquet(path),
    ".arrow": lambda path, notes: read_arrow(path),
    ".txt": _read_txt,
}


def short(value: object) -> str:
    """A value on one line, cut to what a message can hold."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
