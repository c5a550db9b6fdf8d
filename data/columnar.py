"""Read parquet and arrow files batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data.archives import check_kind, file_name, unpack
from data.errors import BAD_DATA, NO_INPUT, InputError

Row = tuple[str, dict[str, object]]  # where, columns


def read_parquet(path: Path) -> Iterator[Row]:
    from pyarrow import parquet

    yield from _batches(path, "parquet", lambda file: parquet.ParquetFile(file))


def read_arrow(path: Path) -> Iterator[Row]:
    """Arrow's stream, which `datasets` writes, or its file format."""
    yield from _batches(path, "arrow", _open_arrow)


def _open_arrow(file: Any) -> Any:
    import pyarrow

    if bytes(file.read(6)) == b"ARROW1":
        file.seek(0)
        return pyarrow.ipc.open_file(file)
    file.seek(max(0, file.size() - 8))
    if bytes(file.read(8)) != b"\xff\xff\xff\xff\0\0\0\0":
        raise pyarrow.ArrowInvalid("the end of the stream is missing")
    file.seek(0)
    return pyarrow.ipc.open_stream(file)


def _batches(path: Path, kind: str, opened: Callable[[Any], Any]) -> Iterator[Row]:
    import pyarrow

    number = 0
    try:
        if file_name(path).compression:
            data = unpack(path)
            check_kind(path, data, kind)
            file = pyarrow.BufferReader(data)
        else:
            with open(path, "rb") as beginning:
                check_kind(path, beginning.read(512), kind)
            file = pyarrow.memory_map(str(path))
        reader = opened(file)
        names = reader.schema.names if kind == "arrow" else reader.schema_arrow.names
        if len(set(names)) < len(names):
            raise InputError(f"{path}: a column is there twice; rename one of the two")
        for batch in _each(reader):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}:row {number}", row
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        reason = " ".join(str(error).split())
        gone = isinstance(error, (FileNotFoundError, PermissionError))
        raise InputError(
            f"{path}:row {number + 1}: not readable as {kind} ({reason}); write the file again",
            NO_INPUT if gone else BAD_DATA,
        ) from error


def _each(reader: Any) -> Iterator[Any]:
    """The record batches of a parquet file, an arrow file or an arrow stream."""
    if hasattr(reader, "iter_batches"):
        yield from reader.iter_batches()
    elif hasattr(reader, "num_record_batches"):
        yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        yield from reader
