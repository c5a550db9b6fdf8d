"""Which rows a step takes, and how rows are cut into micro-batches: by hand and by property."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import batches
from data.batches import inference_batches, micro_batches, step_rows, total_steps

counts = st.integers(1, 40)
many_lengths = st.lists(st.integers(1, 20), max_size=24)


@pytest.mark.parametrize("rows, batch_size, epochs, steps", [
    (8, 4, 1.0, 2),
    (9, 4, 1.0, 3),  # a quarter of a step more is a step more
    (9, 4, 4.0, 9),  # the epochs follow one another without a gap
    (8, 4, 0.5, 1),
    (8, 4, 0.01, 1),  # never none
    (3, 8, 1.0, 1),
])  # fmt: skip
def test_steps_of_so_many_epochs(rows, batch_size, epochs, steps):
    assert total_steps(rows, batch_size, epochs, None) == steps
    assert total_steps(rows, batch_size, epochs, 7) == 7


# ---------------------------------------------------------------- the rows of a step


@settings(max_examples=60, deadline=None)
@given(rows=counts, batch_size=counts, seed=st.integers(0, 3), epochs=st.integers(1, 4))
def test_every_row_comes_once_an_epoch(rows, batch_size, seed, epochs):
    steps = -(-rows * epochs // batch_size)
    taken = [step_rows(step, rows, batch_size, seed) for step in range(1, steps + 1)]
    assert all(len(step) == batch_size for step in taken)
    order = [row for step in taken for row in step]
    for epoch in range(epochs):
        assert sorted(order[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


def epoch(number, rows=50, seed=0):
    return step_rows(number + 1, rows, rows, seed)


def test_every_epoch_and_every_seed_has_its_own_order():
    orders = [epoch(number, seed=seed) for number in range(4) for seed in range(3)]
    assert len({*map(tuple, orders), tuple(range(50))}) == 13


def test_the_rows_of_a_step_depend_on_nothing_else():
    """Not on the steps before, so that a run can go on from any; nor on the global generator."""
    in_order = [step_rows(step, 10, 4, 1) for step in range(1, 9)]
    before = random.getstate()
    random.seed(5)
    assert [step_rows(step, 10, 4, 1) for step in range(8, 0, -1)] == in_order[::-1]
    random.setstate(before)
    epoch(0)
    assert random.getstate() == before


def test_the_order_of_a_seed_is_that_of_earlier_runs():
    """Python's generator seeded with the text "seed/epoch"."""
    assert [step_rows(step, 5, 5, 7) for step in (1, 2, 3)] == [
        random.Random(text).sample([0, 1, 2, 3, 4], 5) for text in ("7/0", "7/1", "7/2")
    ]


def test_a_permutation_is_drawn_once_and_not_kept_for_ever(monkeypatch):
    drawn = []

    class Counting(random.Random):
        def __init__(self, seed):
            drawn.append(seed)
            super().__init__(seed)

    monkeypatch.setattr(batches.random, "Random", Counting)
    batches._cache.clear()
    for _ in range(3):  # a step that ends one epoch and begins the next
        step_rows(3, 10, 4, 0)
    assert drawn == ["0/0", "0/1"]
    for step in range(1, 100):
        step_rows(step, 10, 4, 0)
        assert len(batches._cache) <= 2
    batches._cache.clear()


# ---------------------------------------------------------------- micro-batches of a step


@settings(max_examples=150, deadline=None)
@given(lengths=many_lengths, ranks=st.integers(1, 4), max_tokens=st.integers(1, 60))
def test_a_split_step_has_every_row_once_and_no_micro_batch_over_its_tokens(
    lengths, ranks, max_tokens
):
    shares = micro_batches(lengths, ranks, max_tokens)
    assert len(shares) == ranks
    assert len({len(share) for share in shares}) == 1  # collectives must match
    assert Counter(i for share in shares for b in share for i in b) == Counter(range(len(lengths)))
    for share in shares:
        for micro_batch in share:
            assert micro_batch == sorted(micro_batch)
            assert len(micro_batch) <= 1 or sum(lengths[i] for i in micro_batch) <= max_tokens
    # What was put last into the fullest rank went there because that was the emptiest.
    tokens = [sum(lengths[i] for b in share for i in b) for share in shares]
    assert max(tokens) - min(tokens) <= max(lengths, default=0)
    if max(tokens) <= max_tokens:
        assert len(shares[0]) == 1


@pytest.mark.parametrize("lengths, ranks, max_tokens, expected", [
    ([], 2, 10, [[[]], [[]]]),
    ([4], 3, 10, [[[0]], [[]], [[]]]),
    ([2, 2], 1, 4, [[[0, 1]]]),  # exactly full
    ([2, 2], 1, 3, [[[0], [1]]]),
    ([2, 2], 1, 1, [[[0], [1]]]),  # longer than max_tokens: each alone
    # 5 | 4, 3 -> second (7), 3 -> first (8), 3 -> second (10)
    ([5, 4, 3, 3, 3], 2, 10, [[[0, 3]], [[1, 2, 4]]]),
    # the same shares, in two: 5 | 3, and 4 | 3, 3 -> second
    ([5, 4, 3, 3, 3], 2, 7, [[[0], [3]], [[1], [2, 4]]]),
    # the other rank's need decides: the first could do with one
    ([6, 2, 2, 2], 2, 6, [[[0]], [[1, 2, 3]]]),
    ([7, 2, 2, 2], 2, 5, [[[0], []], [[1, 3], [2]]]),
    # a row longer than max_tokens takes one place, not as many as its tokens would fill
    ([9, 1, 1], 1, 4, [[[0], [1, 2]]]),
    # 9 tokens fit into 2 x 5 by number but not by row
    ([3, 3, 3], 1, 5, [[[0], [1], [2]]]),
    # 4, 4, 3, 3, 3 -> 4, 3, 3 | 4, 3: the first is over 9, though 17 <= 2 x 9
    ([3, 4, 3, 4, 3], 1, 9, [[[1, 4], [3], [0, 2]]]),
])  # fmt: skip
def test_a_step_split_by_hand(lengths, ranks, max_tokens, expected):
    assert micro_batches(lengths, ranks, max_tokens) == expected


# ---------------------------------------------------------------- a pass over all rows


@settings(max_examples=150, deadline=None)
@given(lengths=many_lengths, ranks=st.integers(1, 4), max_tokens=st.integers(1, 60))
def test_a_pass_has_every_row_once_and_rows_of_like_length_together(lengths, ranks, max_tokens):
    shares = inference_batches(lengths, ranks, max_tokens)
    assert len(shares) == ranks and len({len(share) for share in shares}) == 1
    # dealt out in turn: the first micro-batch to the first rank, the second to the second
    dealt = [share[turn] for turn in range(len(shares[0])) for share in shares]
    full = [micro_batch for micro_batch in dealt if micro_batch]
    assert dealt == full + [[]] * (len(dealt) - len(full)) and len(dealt) - len(full) < ranks
    order = [i for micro_batch in full for i in micro_batch]
    assert order == sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    sizes = [[lengths[i] for i in micro_batch] for micro_batch in full]
    assert all(len(size) == 1 or sum(size) <= max_tokens for size in sizes)
    for size, after in zip(sizes, sizes[1:], strict=False):
        assert sum(size) + after[0] > max_tokens  # no room was left for the next row


@pytest.mark.parametrize("lengths, ranks, max_tokens, expected", [
    ([], 2, 4, [[], []]),
    ([1], 2, 4, [[[0]], [[]]]),
    ([3, 1, 2, 5], 2, 4, [[[1, 2], [3]], [[0], []]]),
    ([2, 2, 2, 2], 1, 4, [[[0, 1], [2, 3]]]),
    ([9, 9, 1], 1, 4, [[[2], [0], [1]]]),
])  # fmt: skip
def test_a_pass_by_hand(lengths, ranks, max_tokens, expected):
    assert inference_batches(lengths, ranks, max_tokens) == expected
