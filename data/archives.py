"""The bytes of a data file: unpacked if it is compressed, and what its first bytes say it is."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data.errors import NO_INPUT, InputError
from data.files import check_file

PART = 16 << 20  # bytes unpacked at a time
PLAUSIBLE = 1 << 30  # bytes that any file may unpack to
MOST = 300  # and times its size: text packs to a fifth or a tenth, repeated text to a hundredth

COMPRESSIONS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstandard"}

# How files of a kind begin (a pattern), and what to do with one under the name of another kind.
_KINDS = (
    (rb"\x1f\x8b", "gzip", "a gzip file", "let its name end in .gz"),
    (rb"BZh[1-9](1AY|\x17rE)", "bzip2", "a bzip2 file", "let its name end in .bz2"),
    (rb"\xfd7zXZ\0", "xz", "an xz file", "let its name end in .xz"),
    (rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2aM\x18", "zstandard", "a zstandard file",
     "let its name end in .zst"),
    (rb"PAR[1E]\x15", "parquet", "a parquet file", "let its name end in .parquet"),
    (rb"ARROW1\0\0", "arrow", "an arrow file", "let its name end in .arrow"),
    (rb"\xff\xff\xff\xff", "arrow", "an arrow stream", "let its name end in .arrow"),
    (rb"PK\x03\x04", "zip", "a zip archive or a spreadsheet", "unpack or export it"),
    (rb"SQLite format 3\0", "sqlite", "an SQLite data base", "export its table"),
    (rb"\x89HDF\r\n", "hdf5", "an HDF5 file", "write its rows as .jsonl"),
    (rb"\x93NUMPY", "numpy", "a numpy file", "write its rows as .jsonl"),
    (rb"\x80[\x02-\x05]", "pickle", "a pickle, which is not opened", "write its rows as .jsonl"),
    (rb"version https://git-lfs", "lfs", "a Git LFS pointer and not the file",
     "run `git lfs pull`"),
    (rb".{257}ustar", "tar", "a tar archive", "unpack it"),
    # with a byte order mark, or without one: two characters of the Latin alphabet
    (rb"\xff\xfe\0\0|\0\0\xfe\xff|([^\0]\0{3}){2}|(\0{3}[^\0]){2}", "utf-32", "UTF-32 text",
     "save it as UTF-8"),
    (rb"\xff\xfe|\xfe\xff|([^\0]\0){2}|(\0[^\0]){2}", "utf-16", "UTF-16 text", "save it as UTF-8"),
    (rb"\s*(?i:<!doctype html|<html)", "html", "a web page", "download the file itself"),
)  # fmt: skip


class FileName(NamedTuple):
    """`train.jsonl.gz` in three: `train`, `.jsonl`, `.gz`; the last two in lower case."""

    stem: str
    suffix: str
    compression: str


def file_name(path: Path) -> FileName:
    rest, compression = path.name, ""
    if path.suffix.lower() in COMPRESSIONS:
        rest, compression = path.stem, path.suffix.lower()
    inner = Path(rest)
    return FileName(inner.stem, inner.suffix.lower(), compression)


def unpack(path: Path) -> bytes:
    """All bytes of the file, decompressed if its name says that it is compressed."""
    check_file(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})", NO_INPUT) from error
    compression = COMPRESSIONS.get(path.suffix.lower())
    if compression is None or not raw:
        return raw
    kind = kind_of(raw)
    if kind is None or kind[0] != compression:
        is_kind = f"this is {kind[1]}" if kind else "its bytes are something else"
        raise InputError(
            f"{path}: not {compression} data, {is_kind}; get the file again, or rename it"
        )
    try:
        return _decompress(raw, compression, path)
    except (EOFError, OSError, zlib.error, lzma.LZMAError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}: the {compression} data is damaged or cut short ({reason}); get the file again"
        ) from error


def _decompress(raw: bytes, compression: str, path: Path) -> bytes:
    parts, size = [], 0
    for part in _parts(raw, compression):
        parts.append(part)
        size += len(part)
        if size > PLAUSIBLE and size > MOST * len(raw):
            raise InputError(
                f"{path}: over {MOST} times its size comes out of it; if that is right, unpack it"
                " and give what it holds"
            )
    return b"".join(parts)


def _parts(raw: bytes, compression: str) -> Iterator[bytes]:
    if compression in ("bzip2", "xz"):
        yield from _members(raw, compression)
        return
    if compression == "gzip":
        stream: Any = gzip.GzipFile(fileobj=io.BytesIO(raw))
    else:
        import pyarrow

        stream = pyarrow.CompressedInputStream(pyarrow.BufferReader(raw), "zstd")
    with stream:
        while part := stream.read(PART):
            yield part


def _members(raw: bytes, compression: str) -> Iterator[bytes]:
    """Member after member: the modules' own `decompress` drops what follows a damaged one."""
    while raw:
        member = bz2.BZ2Decompressor() if compression == "bzip2" else lzma.LZMADecompressor()
        yield member.decompress(raw, PART)
        while not member.eof:
            if member.needs_input:
                raise EOFError("it ends before its end marker")
            yield member.decompress(b"", PART)
        raw = member.unused_data.lstrip(b"\0")


def kind_of(data: bytes) -> tuple[str, str, str] | None:
    """(kind, the kind in words, what to do) by the first bytes; None for text and the unknown."""
    for begin, kind, words, remedy in _KINDS:
        if re.match(begin, data[:512], re.DOTALL):
            return kind, words, remedy
    return None


def check_kind(path: Path, data: bytes, expected: str | None) -> None:
    """Refuse a file that is of another kind than its name says; `expected` None: text."""
    kind = kind_of(data)
    if kind is None or kind[0] == expected:
        return
    raise InputError(f"{path}: this is {kind[1]}, whatever its name says; {kind[2]}")
