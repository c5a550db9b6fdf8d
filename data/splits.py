"""A split: encoded rows, and how any of them become one batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from data.batches import inference_batches, micro_batches
from data.row_table import Row, RowTable
from data.trees import Layout, TreeBatch, pack


@dataclass(frozen=True)
class Split:
    """Rows of k responses each, with what else is known of their sequences.

    The sequences stand in the order of the rows: those of row i are i * k to i * k + k - 1.
    """

    rows: Sequence[Row]
    layout: Layout = "tree"
    packing: Mapping[str, bool] = field(default_factory=dict)  # keyword arguments of `pack`
    # A column has one value a sequence (S,) or one a token (S, T), for any T that is long enough:
    # reference log-probs, say, or the advantages of a rollout.
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def table(self) -> RowTable:
        """The rows, for what is asked of all of them."""
        return RowTable.of(self.rows)

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens that each row costs."""
        include_last_token = self.packing.get("include_last_token", False)
        found: list[int] = self.table.tree_lengths(include_last_token=include_last_token).tolist()
        return found

    def with_columns(self, columns: Mapping[str, Tensor]) -> Split:
        """The same rows with more columns."""
        return replace(self, columns={**self.columns, **columns})

    def batch(self, members: Sequence[int], device: torch.device) -> TreeBatch:
        """The rows `members` as one micro-batch; if there are none, one that counts for nothing."""
        picked = list(members) or [0]
        batch = pack([self.rows[i] for i in picked], layout=self.layout, **self.packing)
        k, width = batch.num_sequences // len(picked), batch.mask.shape[1]
        sequences = [i * k + j for i in picked for j in range(k)]
        columns = {name: _cut(x[sequences], width) for name, x in self.columns.items()}
        return replace(batch.with_columns(columns), dummy=not members).to(device)

    def batches(
        self, max_tokens: int, device: torch.device, *, rank: int = 0, ranks: int = 1
    ) -> Iterator[tuple[list[int], TreeBatch]]:
        """This rank's (positions of the rows, their batch) for one pass over all, without updates.

        Every rank has as many; where there are too few rows for that, a dummy and no positions.
        """
        for members in inference_batches(self.lengths, ranks, max_tokens)[rank]:
            yield members, self.batch(members, device)


@dataclass(frozen=True)
class StepRows:
    """The rows of one optimizer step, to be cut into micro-batches of any size."""

    split: Split
    rows: Sequence[int]  # of all `ranks`
    ranks: int = 1
    rank: int = 0

    def batches(self, max_tokens: int, device: torch.device) -> list[TreeBatch]:
        """This rank's micro-batches, as few as `max_tokens` allows; one at least, maybe a dummy."""
        lengths = [self.split.lengths[i] for i in self.rows]
        parts = micro_batches(lengths, self.ranks, max_tokens)[self.rank]
        return [self.split.batch([self.rows[p] for p in part], device) for part in parts]

    def names(self, most: int = 16) -> str:
        """Where the rows are from, for a message."""
        rows = [self.split.rows[i] for i in self.rows]
        names = [row.where or f"response {row.index}" for row in rows]
        more = f" and {len(names) - most} more" if len(names) > most else ""
        return ", ".join(names[:most]) + more


def _cut(column: Tensor, width: int) -> Tensor:
    """A column of tokens as wide as the batch; one of sequences as it is."""
    return column[:, :width] if column.ndim == 2 else column
