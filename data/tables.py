"""The rows of a .json file that is one object: a row, rows under a key, or columns.

What pandas writes is known by its form: `{"columns": [...], "data": [...]}` (orient "split"),
`{column: {"0": value}}` (the default) and `{"0": {column: value}}` (orient "index").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data.errors import InputError

Row = dict[str, object]

# An object with one of these, as a string or messages, is a row, whatever its other values are.
_TEXTS = {
    *("prompt", "chosen", "rejected", "completion", "goal", "sol1", "sol2", "text", "messages"),
    *("conversations", "conversation", "question", "answer", "instruction", "input", "output"),
    *("response", "query", "system", "tools", "history", "context"),
}
_FIX = "write an array of rows, [{column: value, ...}, ...]"


def rows_of_object(value: Mapping[str, object], path: object) -> tuple[Sequence[object], str]:
    """(the rows of the object, a note on where in it they are, "" where it is a row itself)."""
    if {"columns", "data"} <= set(value):
        return _split(value, path), "rows of a table, {columns, data}"
    lists = {key: item for key, item in value.items() if isinstance(item, list)}
    objects = {key: item for key, item in value.items() if isinstance(item, dict)}
    if any(_messages(item) for item in lists.values()):
        return [value], ""
    tables = [key for key, item in lists.items() if any(isinstance(x, dict) for x in item)]
    others = {key for key in value if key not in tables}
    # a column may hold objects: beside other columns, as long as they are
    beside_columns = (
        bool(others) and others <= set(lists) and len(set(map(len, lists.values()))) < 2
    )
    if tables and not beside_columns and not _TEXTS & (others | {"tools"} & set(value)):
        if len(tables) > 1:
            names = ", ".join(map(repr, tables))
            raise InputError(f"{path}: rows under several keys ({names}); {_FIX} in a file each")
        return lists[tables[0]], f"rows of its key {tables[0]!r}"
    if lists and len(lists) == len(value):
        return _columns(lists, path), "rows from columns"
    if objects and len(objects) == len(value):
        return _indexed(objects, path), "rows of an indexed table"
    return [value], ""


def _messages(value: list[Any]) -> bool:
    return any(isinstance(item, dict) and {"role", "from"} & set(item) for item in value)


def _split(value: Mapping[str, object], path: object) -> list[Row]:
    columns, data = value["columns"], value["data"]
    fits = isinstance(columns, list) and isinstance(data, list)
    if not fits or set(value) - {"columns", "data", "index"}:
        raise InputError(f"{path}: a table in a form that is not known; {_FIX}")
    assert isinstance(columns, list) and isinstance(data, list)
    names = [str(column) for column in columns]
    if len(set(names)) < len(names):
        raise InputError(f"{path}: a column is there twice; rename one of the two")
    for number, cells in enumerate(data, 1):
        if not isinstance(cells, list) or len(cells) != len(names):
            raise InputError(
                f"{path}:row {number}: not {len(names)} values, as columns are; {_FIX}"
            )
    return [dict(zip(names, cells, strict=True)) for cells in data]


def _columns(lists: Mapping[str, list[Any]], path: object) -> list[Row]:
    lengths = {key: len(item) for key, item in lists.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{key!r} has {length}" for key, length in lengths.items())
        raise InputError(f"{path}: columns of unequal length ({told[:120]}); {_FIX}")
    return [dict(zip(lists, cells, strict=True)) for cells in zip(*lists.values(), strict=True)]


def _indexed(objects: Mapping[str, dict[str, Any]], path: object) -> list[Row]:
    if all(key.isdigit() for key in objects):  # orient "index"
        return list(objects.values())
    index = list(next(iter(objects.values())))
    if not all(key.isdigit() for item in objects.values() for key in item):
        raise InputError(f"{path}: an object of objects; {_FIX}")
    for key, item in objects.items():
        if set(item) != set(index):
            raise InputError(f"{path}: the column {key!r} has other rows than the first; {_FIX}")
    return [{key: item[place] for key, item in objects.items()} for place in index]
