"""Encoded rows: one by itself, and many as an Arrow table, in memory or mapped from a file.

As Python lists a million rows take ten times as much memory, and each look at all of them, at their
lengths say, takes seconds. `RowTable` is a sequence of the same rows.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from os.path import commonprefix
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow

# Rows and tokens of an Arrow batch: large enough to be few, small enough for 32-bit offsets.
BATCH_ROWS, BATCH_TOKENS = 1 << 14, 1 << 24


@dataclass(frozen=True, slots=True)
class Row:
    index: int  # position among the encoded rows: the key of per-row caches
    prompt: list[int]  # shared by the responses; never empty
    responses: list[list[int]]  # one (prompt/completion) or two (chosen, rejected), none empty
    ends: list[bool]  # per response: its last token is the end token, not where it was cut
    characters: list[int]  # per response: characters, one leading space not counted (acc_norm)
    margin: float = 0.0
    masks: list[list[bool]] | None = None  # per response: which tokens are trained; None: all
    where: str = ""  # "train.jsonl:17", for messages


def shared_length(row: Row) -> int:
    """How many response tokens all responses of the row begin with."""
    return len(commonprefix(row.responses)) if len(row.responses) > 1 else 0


class RowTable(Sequence[Row]):
    """Rows, numbered from 0; a `Row` is made when it is asked for.

    Args:
        batches: Arrow record batches of `schema()`.
        token_ids: every token id there is.
        digest: a hash of the rows, but not of where they are from.
    """

    def __init__(
        self, batches: Sequence[pyarrow.RecordBatch], token_ids: frozenset[int], digest: str
    ) -> None:
        self.batches, self.token_ids, self.digest = list(batches), token_ids, digest
        self._starts = [*accumulate((len(batch) for batch in self.batches), initial=0)]

    @classmethod
    def of(cls, rows: Iterable[Row]) -> RowTable:
        """The table of rows, which are numbered anew; a table is itself."""
        if isinstance(rows, RowTable):
            return rows
        builder = RowTableBuilder()
        for row in rows:
            builder.add(row)
        return builder.build()

    @classmethod
    def read(cls, path: Path) -> RowTable:
        """Map the file that `write` wrote: what is not looked at takes no memory."""
        import pyarrow

        file = pyarrow.ipc.open_file(pyarrow.memory_map(str(path)))
        batches = [file.get_batch(i) for i in range(file.num_record_batches)]
        about = json.loads(file.schema.metadata[b"rows"])
        return cls(batches, frozenset(about["token_ids"]), about["digest"])

    def write(self, path: Path) -> None:
        """Write a file of Arrow's IPC format."""
        import pyarrow

        about = {"token_ids": sorted(self.token_ids), "digest": self.digest}
        described = schema().with_metadata({"rows": json.dumps(about)})
        with pyarrow.ipc.new_file(str(path), described) as file:
            for batch in self.batches:
                file.write_batch(batch)

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> list[Row]: ...
    def __getitem__(self, at: int | slice) -> Row | list[Row]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        index = range(len(self))[at]  # IndexError beyond the end, and from behind if negative
        number = bisect_right(self._starts, index) - 1
        (row,) = _rows(self.batches[number].slice(index - self._starts[number], 1), index)
        return row

    def __iter__(self) -> Iterator[Row]:
        for start, batch in zip(self._starts, self.batches, strict=False):
            for at in range(0, len(batch), 1024):
                yield from _rows(batch.slice(at, 1024), start + at)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def repeated(self, name: str) -> NDArray[Any]:
        """What a row has once, by this name, for each of its responses: (S,)."""
        parts = [batch.column(name).to_numpy(zero_copy_only=False) for batch in self.batches]
        return np.repeat(np.concatenate(parts), self._lengths.responses)

    def tree_lengths(self, *, include_last_token: bool) -> NDArray[np.int32]:
        """Tokens that each row's tree computes, (n,): see `data.trees.tree_tokens`."""
        of = self._lengths
        beside = of.shared + (0 if include_last_token else 1)  # of a response, computed elsewhere
        own = np.maximum(of.response - np.repeat(beside, of.responses), 0)
        lengths: NDArray[np.int32] = of.prompt + of.shared + np.add.reduceat(own, of.first)
        return lengths

    def longest(self) -> int:
        """Tokens of the longest prompt and response together."""
        of = self._lengths
        return int((of.prompt + np.maximum.reduceat(of.response, of.first)).max())

    @cached_property
    def _lengths(self) -> _Lengths:
        from pyarrow import compute

        parts = []
        for batch in self.batches:
            prompts, responses = batch.column("prompt"), batch.column("responses")
            arrays = [
                compute.list_value_length(prompts),
                batch.column("shared"),
                compute.list_value_length(responses),
                compute.list_value_length(responses.flatten()),
            ]
            parts.append([array.to_numpy() for array in arrays])
        return _Lengths(*(np.concatenate(column) for column in zip(*parts, strict=True)))


class _Lengths(NamedTuple):
    """Of n rows with S responses in all."""

    prompt: NDArray[np.int32]  # (n,) tokens
    shared: NDArray[np.int32]  # (n,) tokens that all responses of the row begin with
    responses: NDArray[np.int32]  # (n,) how many
    response: NDArray[np.int32]  # (S,) tokens

    @property
    def first(self) -> NDArray[np.int64]:
        """Of each row's responses the first, among all: (n,)."""
        return np.cumsum(self.responses) - self.responses


class RowTableBuilder:
    """Takes rows one by one, and keeps no list of them."""

    def __init__(self) -> None:
        self._batches: list[pyarrow.RecordBatch] = []
        self._rows: list[Row] = []  # of the next batch
        self._tokens = 0  # of these
        self._count = 0
        self._token_ids: set[int] = set()
        self._digest = hashlib.sha256()

    def __len__(self) -> int:
        return self._count

    def add(self, row: Row) -> None:
        """Append a row; its index becomes its position."""
        numbered = replace(row, index=self._count)
        self._digest.update(repr(replace(numbered, where="")).encode())
        for tokens in (row.prompt, *row.responses):
            self._token_ids.update(tokens)
            self._tokens += len(tokens)
        self._rows.append(numbered)
        self._count += 1
        if len(self._rows) == BATCH_ROWS or self._tokens >= BATCH_TOKENS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        columns = {name: [getattr(row, name) for row in self._rows] for name in FIELDS}
        columns["where"] = [row.where.encode("utf-8", "surrogatepass") for row in self._rows]
        columns["shared"] = [shared_length(row) for row in self._rows]
        self._batches.append(pyarrow.RecordBatch.from_pydict(columns, schema()))
        self._rows, self._tokens = [], 0

    def build(self) -> RowTable:
        """The rows that were added."""
        if self._rows or not self._batches:  # of no row too there are columns
            self._flush()
        return RowTable(self._batches, frozenset(self._token_ids), self._digest.hexdigest())


FIELDS = [name for name in Row.__dataclass_fields__ if name != "index"]


def schema() -> pyarrow.Schema:
    """The columns: a row's fields, and `shared_length`."""
    import pyarrow

    tokens, flags = pyarrow.list_(pyarrow.int32()), pyarrow.list_(pyarrow.bool_())
    types = {
        "prompt": tokens,
        "responses": pyarrow.list_(tokens),
        "ends": flags,
        "characters": pyarrow.list_(pyarrow.int64()),
        "margin": pyarrow.float64(),
        "masks": pyarrow.list_(flags),
        "where": pyarrow.binary(),  # a path may be no UTF-8
        "shared": pyarrow.int32(),
    }
    return pyarrow.schema(types.items())


def _rows(batch: pyarrow.RecordBatch, start: int) -> Iterator[Row]:
    """The rows of a batch, the first of which is number `start`."""
    for index, values in enumerate(batch.select(FIELDS).to_pylist(), start):
        where = values.pop("where").decode("utf-8", "surrogatepass")
        yield Row(index, **values, where=where)
