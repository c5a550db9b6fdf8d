"""The same pairs in the same order: train.py shuffles its file, TRL takes its own as it stands.

So TRL's file is ours in the order in which train.py takes the rows; and where the batches are to be
others, ours is laid out so that its shuffling makes them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from data.batches import first_epoch

Row = TypeVar("Row")


def cycled(rows: Sequence[Row], count: int) -> list[Row]:
    """The first `count` rows, from the start again where there are fewer."""
    return [rows[i % len(rows)] for i in range(count)]


def trained_order(rows: int, batch_size: int, seed: int) -> list[int]:
    """Positions in a file of `rows` rows as train.py takes them in its first epoch.

    Raises:
        ValueError: an epoch is no whole number of steps.
    """
    if rows % batch_size:
        raise ValueError(f"{rows} rows are no whole number of batches of {batch_size}")
    return [i for step in first_epoch(rows, batch_size, seed, rows) for i in step]


def as_trained(file: Sequence[Row], batch_size: int, seed: int) -> list[Row]:
    """A file's rows in the order in which train.py takes them."""
    return [file[i] for i in trained_order(len(file), batch_size, seed)]


def placed(sequence: Sequence[Row], batch_size: int, seed: int) -> list[Row]:
    """The file whose rows train.py takes in the order of `sequence`."""
    file = list(sequence)
    for place, row in zip(trained_order(len(file), batch_size, seed), sequence, strict=True):
        file[place] = row
    return file


def grouped_by_length(
    rows: Sequence[Row], lengths: Sequence[int], batch_size: int, *, warm_up: int, seed: int
) -> list[Row]:
    """Rows of like length in one batch, but for the first `warm_up` batches, which stay.

    The Trainer's `group_by_length` sorts groups of 50 batches; here all are one group, which pads
    no more. The batches then come in a random order, so that dropping some favours nobody.
    """
    first = warm_up * batch_size
    order = sorted(range(first, len(rows)), key=lambda i: lengths[i])
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    random.Random(seed).shuffle(batches)
    return [*rows[:first], *(rows[i] for batch in batches for i in batch)]
