"""Which rows an optimizer step takes, and how they are cut into micro-batches over the ranks.

Both are pure functions of a few integers, the same on every rank: nothing is drawn from a global
random number generator, and a run's position in the data is its step number.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence

from data.errors import USAGE, InputError


def total_steps(rows: int, batch_size: int, epochs: float, max_steps: int | None) -> int:
    """Optimizer steps of a run: `max_steps`, or what `epochs` passes take, rounded up.

    Raises:
        InputError: too many to count.
    """
    if max_steps is not None:
        return max_steps
    steps = rows * epochs / batch_size
    if not steps < 2**31:
        raise InputError(f"--epochs {epochs:g}: {steps:.0e} steps; give at most 2^31", USAGE)
    return max(1, math.ceil(steps))


def step_rows(step: int, rows: int, batch_size: int, seed: int) -> list[int]:
    """The rows of optimizer step `step` (1 is the first).

    Epochs follow one another without a gap, each a permutation given by (seed, epoch): no row is
    left out at an epoch's end, and no step is short.
    """
    picked = []
    for position in range((step - 1) * batch_size, step * batch_size):
        epoch, offset = divmod(position, rows)
        picked.append(_permutation(rows, seed, epoch)[offset])
    return picked


def first_epoch(rows: int, batch_size: int, seed: int, steps: int) -> list[list[int]]:
    """The rows of each of the first `steps` steps, up to the one by which all have been taken."""
    needed = min(steps, math.ceil(rows / batch_size))
    return [step_rows(step, rows, batch_size, seed) for step in range(1, needed + 1)]


_cache: dict[tuple[int, int, int], list[int]] = {}


def _permutation(rows: int, seed: int, epoch: int) -> list[int]:
    key = (rows, seed, epoch)
    if key not in _cache:
        if len(_cache) > 1:  # a step touches two epochs at most, unless it is larger than the data
            _cache.clear()
        _cache[key] = random.Random(f"{seed}/{epoch}").sample(range(rows), rows)
    return _cache[key]


def micro_batches(lengths: Sequence[int], ranks: int, max_tokens: int) -> list[list[list[int]]]:
    """Cut rows of the given token counts into micro-batches: result[rank][micro-batch] = positions.

    Every rank gets the same number of micro-batches (collectives must match), as few as
    `max_tokens` allows, and about the same number of tokens. A row longer than `max_tokens` stands
    alone. Where there are fewer rows than places, some micro-batches are empty.
    """
    longest_first = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    shares = balance(longest_first, lengths, ranks)
    count = max(1, max(_min_bins(share, lengths, max_tokens) for share in shares))
    return [[sorted(b) for b in balance(share, lengths, count)] for share in shares]


def balance(rows: Sequence[int], lengths: Sequence[int], bins: int) -> list[list[int]]:
    """Rows, the longest first, each into the emptiest bin: near-equal sums."""
    filled: list[list[int]] = [[] for _ in range(bins)]
    emptiest = [(0, b) for b in range(bins)]  # a heap; among equals the first bin
    for i in rows:
        total, b = heapq.heappop(emptiest)
        filled[b].append(i)
        heapq.heappush(emptiest, (total + lengths[i], b))
    return filled


def _min_bins(rows: Sequence[int], lengths: Sequence[int], max_tokens: int) -> int:
    """The smallest number of bins that `balance` fills without passing `max_tokens`."""
    # A bin holds no more than max_tokens, apart from one that a single longer row fills.
    least = -(-sum(min(lengths[i], max_tokens) for i in rows) // max_tokens)
    for count in range(max(1, least), len(rows) + 1):
        bins = balance(rows, lengths, count)
        if all(sum(lengths[i] for i in b) <= max_tokens or len(b) == 1 for b in bins):
            return count
    return len(rows)


def inference_batches(lengths: Sequence[int], ranks: int, max_tokens: int) -> list[list[list[int]]]:
    """Cut a whole data set for one pass without updates: result[rank][micro-batch] = positions.

    Rows of like length go together. Every rank gets the same number of micro-batches, the last ones
    empty where they do not come out even.
    """
    batches: list[list[int]] = []
    room = 0
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if lengths[i] > room:
            batches.append([])
            room = max_tokens
        batches[-1].append(i)
        room -= lengths[i]
    batches += [[]] * (-len(batches) % ranks)
    return [batches[rank::ranks] for rank in range(ranks)]
