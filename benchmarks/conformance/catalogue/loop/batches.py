"""Rows become a batch: which token is trained, from which position, and what it may see.

One step of SFT over five rows that stand in one packed row, against each row by itself: whatever
is masked, shifted or padded wrongly changes its loss and its gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.conformance.catalogue.loop.base import in_the_loop
from benchmarks.conformance.catalogue.loop.step import one_step
from benchmarks.conformance.catalogue.loop.world import END
from data.trees import TreeBatch

PACK = "runtime.inputs:pack"


def tokens_of(batch: TreeBatch) -> Tensor:
    """(S, T) the target at every place of the table."""
    return batch.targets[batch.gather]


def with_mask(batch: TreeBatch, change: Callable[[Tensor], Tensor]) -> TreeBatch:
    return replace(batch, mask=change(batch.mask))


@in_the_loop("B1", PACK, one_step)
def mask_early_by_one(right: Any, *args: Any, **options: Any) -> Any:
    """The mask is cut [:-1] beside labels cut [1:]: the first token of every response is never
    trained."""
    batch = right(*args, **options)
    first = torch.arange(batch.mask.shape[1]) == 0
    return with_mask(batch, lambda mask: mask & ~first)


@in_the_loop("B2", PACK, one_step)
def last_target_of_the_pack_lost(right: Any, rows: Any, **options: Any) -> Any:
    """Packed rows lose the last target of the pack, because labels were cut where inputs were."""
    batch = right(rows, **options)
    mask = batch.mask.clone()
    mask[-1, int(mask[-1].sum()) - 1] = False
    return replace(batch, mask=mask)


@in_the_loop("B3", PACK, one_step)
def labels_shifted_twice(right: Any, *args: Any, **options: Any) -> Any:
    """The loader shifts the labels and the loss shifts them again: every position learns the token
    after next."""
    batch = right(*args, **options)
    return replace(batch, targets=batch.targets.roll(-1))


@in_the_loop("B4", PACK, one_step)
def padding_has_labels(right: Any, *args: Any, **options: Any) -> Any:
    """Labels are padded with a token id instead of "ignore": the padding of a short response is
    part of its log-prob."""
    return with_mask(right(*args, **options), torch.ones_like)


@in_the_loop("B5", PACK, one_step)
def end_taken_for_padding(right: Any, *args: Any, **options: Any) -> Any:
    """Labels are switched off wherever the token is the pad token, and that is the end token: the
    model never learns to stop."""
    batch = right(*args, **options)
    return with_mask(batch, lambda mask: mask & (tokens_of(batch) != END))


@in_the_loop("B11", PACK, one_step)
def one_column_too_many_cut(right: Any, *args: Any, **options: Any) -> Any:
    """ "Empty" columns are cut at the last filled one, not after it: the longest response loses its
    end."""
    batch = right(*args, **options)
    return replace(
        batch,
        mask=batch.mask[:, :-1],
        prompt_mask=batch.prompt_mask[:, :-1],
        gather=batch.gather[:, :-1],
    )


@in_the_loop("B15", PACK, one_step)
def positions_run_through(right: Any, *args: Any, **options: Any) -> Any:
    """No position ids are given, so a sequence that does not begin at the left edge has other
    positions than alone; a model with absolute positions reads another text."""
    batch = right(*args, **options)
    columns = torch.arange(batch.input_ids.shape[1]).expand_as(batch.input_ids)
    return replace(batch, position_ids=columns.clone())


@in_the_loop("B18", "losses.forward:tree_mask", one_step)
def one_document_sees_another(right: Any, example: Tensor, *rest: Any, **options: Any) -> Any:
    """Packed rows under a plain causal mask: a response attends to the rows in front of its own."""
    columns = torch.arange(example.shape[1]).expand_as(example)
    nobody = torch.zeros_like(example)
    return right(nobody, nobody, columns, **options)


@in_the_loop("B20", PACK, one_step)
def masked_by_value(right: Any, *args: Any, **options: Any) -> Any:
    """Tokens are switched off by their value: a real token with id 0, which looks like padding, is
    not trained."""
    batch = right(*args, **options)
    return with_mask(batch, lambda mask: mask & (tokens_of(batch) != 0))
