"""What stands where in a batch, by hand. That models compute the same with it: test_trees.py."""

import random
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data import trees
from data.row_table import Row, shared_length
from data.trees import pack, tree_mask, tree_tokens

T, F = True, False
# The responses of the first share their first token, those of the second nothing.
A = Row(7, [10, 11], [[20, 21, 22], [20, 31]], [T, F], [3, 2])
B = Row(9, [40, 41, 42, 43, 44], [[50, 51], [60, 61, 62]], [T, T], [5, 6])
PREFIX = Row(0, [5], [[6, 7], [6, 7, 8]], [F, T], [2, 3])  # one response begins the other
SINGLE = Row(0, [5], [[6, 7]], [T], [2])


def values(batch, *names):
    return {name: getattr(batch, name).tolist() for name in names}


def test_two_trees_in_one_row_the_longer_one_first():
    batch = pack([A, B])
    assert values(batch, "input_ids", "position_ids", "example", "branch") == {
        "input_ids": [[40, 41, 42, 43, 44, 50, 60, 61, 10, 11, 20, 21]],
        "position_ids": [[0, 1, 2, 3, 4, 5, 5, 6, 0, 1, 2, 3]],
        "example": [[1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]],
        "branch": [[0, 0, 0, 0, 0, 1, 2, 2, 0, 0, 0, 1]],
    }
    # Sequences stay in the order of the rows; 51 and 62, 22 and 31 are predicted, not computed.
    assert values(batch, "parents", "targets", "gather", "mask", "prompt_mask") == {
        "parents": [9, 10, 11, 10, 4, 5, 4, 6, 7],
        "targets": [20, 21, 22, 31, 50, 51, 60, 61, 62],
        "gather": [[0, 1, 2], [0, 3, 0], [4, 5, 0], [6, 7, 8]],
        "mask": [[T, T, T], [T, T, F], [T, T, F], [T, T, T]],
        "prompt_mask": [[F, F, F]] * 4,
    }
    assert values(batch, "index", "ended", "characters") == {
        "index": [7, 9],
        "ended": [T, F, T, T],
        "characters": [3, 2, 5, 6],
    }
    assert (batch.response_lengths, batch.prompt_lengths) == ((3, 2, 2, 3), (0, 0, 0, 0))
    assert (batch.num_examples, batch.num_sequences, batch.num_tokens) == (2, 4, 10)
    assert (batch.layout, batch.include_last_token, batch.dummy) == ("tree", False, False)
    assert batch.columns == {}


def test_two_trees_with_their_last_tokens():
    batch = pack([A, B], include_last_token=True)
    assert values(batch, "input_ids", "position_ids", "branch", "parents", "last") == {
        "input_ids": [[40, 41, 42, 43, 44, 50, 51, 60, 61, 62, 10, 11, 20, 21, 22, 31]],
        "position_ids": [[0, 1, 2, 3, 4, 5, 6, 5, 6, 7, 0, 1, 2, 3, 4, 3]],
        "branch": [[0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 0, 0, 0, 1, 1, 2]],
        "parents": [11, 12, 13, 12, 4, 5, 4, 7, 8],
        "last": [14, 15, 6, 9],
    }
    assert batch.include_last_token and batch.targets.tolist() == pack([A, B]).targets.tolist()


def test_a_response_that_begins_another_has_no_branch_of_its_own():
    batch = pack([PREFIX], include_last_token=True)
    assert values(batch, "input_ids", "branch", "parents", "targets", "gather", "last") == {
        "input_ids": [[5, 6, 7, 8]],
        "branch": [[0, 0, 0, 2]],
        "parents": [0, 1, 2],
        "targets": [6, 7, 8],
        "gather": [[0, 1, 0], [0, 1, 2]],
        "last": [2, 3],
    }
    assert pack([PREFIX]).input_ids.tolist() == [[5, 6, 7]]
    swapped = Row(0, [5], [[6, 7, 8], [6, 7]], [T, F], [3, 2])
    batch = pack([swapped], include_last_token=True)
    assert values(batch, "branch", "last") == {"branch": [[0, 0, 0, 1]], "last": [3, 2]}


def test_with_prompts_their_tokens_come_first_all_but_the_first():
    batch = pack([A, B], prompts=True)
    assert values(batch, "parents", "targets", "gather") == {
        "parents": [8, 9, 10, 11, 10, 0, 1, 2, 3, 4, 5, 4, 6, 7],
        "targets": [11, 20, 21, 22, 31, 41, 42, 43, 44, 50, 51, 60, 61, 62],
        "gather": [
            [0, 1, 2, 3, 0, 0, 0],
            [0, 1, 4, 0, 0, 0, 0],
            [5, 6, 7, 8, 9, 10, 0],
            [5, 6, 7, 8, 11, 12, 13],
        ],
    }
    assert batch.mask.long().tolist() == [
        [0, 1, 1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1, 1, 1],
    ]
    assert batch.prompt_mask.sum(-1).tolist() == [1, 1, 4, 4]
    assert batch.prompt_mask[:, 0].all() and not (batch.prompt_mask & batch.mask).any()
    assert (batch.response_lengths, batch.prompt_lengths) == ((3, 2, 2, 3), (1, 1, 4, 4))
    assert batch.num_tokens == 10
    # A value a target, told apart by their numbers: each sequence has its own, 0 elsewhere.
    numbers = torch.arange(1.0, 15.0)
    assert batch.sequences(numbers).long().tolist() == [
        [1, 2, 3, 4, 0, 0, 0],
        [1, 2, 5, 0, 0, 0, 0],
        [6, 7, 8, 9, 10, 11, 0],
        [6, 7, 8, 9, 12, 13, 14],
    ]
    # The end token is left out where the response has one: not where it was cut.
    assert batch.text_mask().long().tolist() == [
        [0, 1, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 1, 1, 0],
    ]


def test_the_rectangle_has_one_padded_row_a_sequence():
    batch = pack([A, B], layout="rectangle")
    assert values(batch, "input_ids", "position_ids", "example", "branch") == {
        "input_ids": [
            [10, 11, 20, 21, 0, 0, 0],
            [10, 11, 20, 0, 0, 0, 0],
            [40, 41, 42, 43, 44, 50, 0],
            [40, 41, 42, 43, 44, 60, 61],
        ],
        "position_ids": [
            [0, 1, 2, 3, 0, 1, 2],
            [0, 1, 2, 0, 1, 2, 3],
            [0, 1, 2, 3, 4, 5, 0],
            [0, 1, 2, 3, 4, 5, 6],
        ],
        "example": [
            [0, 0, 0, 0, -1, -1, -1],
            [1, 1, 1, -1, -1, -1, -1],
            [2, 2, 2, 2, 2, 2, -1],
            [3, 3, 3, 3, 3, 3, 3],
        ],
        "branch": [
            [0, 0, 1, 1, 0, 0, 0],
            [0, 0, 1, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 1, 0],
            [0, 0, 0, 0, 0, 1, 1],
        ],
    }
    assert values(batch, "parents", "targets", "gather") == {
        "parents": [1, 2, 3, 8, 9, 18, 19, 25, 26, 27],
        "targets": [20, 21, 22, 20, 31, 50, 51, 60, 61, 62],
        "gather": [[0, 1, 2], [3, 4, 0], [5, 6, 0], [7, 8, 9]],
    }
    assert batch.mask.equal(pack([A, B]).mask) and batch.index.tolist() == [7, 9]
    assert (batch.layout, batch.num_examples, batch.num_sequences) == ("rectangle", 2, 4)


def test_trees_stand_in_rows_of_their_own_where_that_costs_less(monkeypatch):
    monkeypatch.setattr(trees, "WIDE", 0)  # 2 rows of 8 squared are less than one of 12
    batch = pack([A, B])
    assert values(batch, "input_ids", "position_ids", "example", "branch") == {
        "input_ids": [[40, 41, 42, 43, 44, 50, 60, 61], [10, 11, 20, 21, 0, 0, 0, 0]],
        "position_ids": [[0, 1, 2, 3, 4, 5, 5, 6], [0, 1, 2, 3, 0, 1, 2, 3]],
        "example": [[1] * 8, [0, 0, 0, 0, -1, -1, -1, -1]],
        "branch": [[0, 0, 0, 0, 0, 1, 2, 2], [0, 0, 0, 1, 0, 0, 0, 0]],
    }
    assert batch.parents.tolist() == [9, 10, 11, 10, 4, 5, 4, 6, 7]


def rows_of_lengths(lengths):
    """Rows whose trees have so many tokens: the prompt alone, the response being only a target."""
    return [Row(i, [3] * n, [[2]], [True], [1]) for i, n in enumerate(lengths)]


def packed(lengths):
    """Which trees stand in which row, in their order."""
    example = pack(rows_of_lengths(lengths)).example
    return [[t for t in row.unique_consecutive().tolist() if t >= 0] for row in example]


@pytest.mark.parametrize("lengths, wide, expected", [
    ([3, 5, 4, 2, 6], 10**6, [[4, 1, 2, 0, 3]]),  # nothing but tokens counts: no padding
    ([3, 5, 4, 2, 6], 0, [[4], [1], [2], [0, 3]]),  # 4 rows of 6: 144
    ([4, 4, 4], 4, [[0], [1], [2]]),  # equal ones pad nothing alone
    ([5, 2, 1], 16, [[0, 1, 2]]),
    ([12, 7, 5, 3], 64, [[0, 3], [1, 2]]),
])  # fmt: skip
def test_rows_are_balanced_and_as_many_as_cost_least(monkeypatch, lengths, wide, expected):
    monkeypatch.setattr(trees, "WIDE", wide)
    assert packed(lengths) == expected


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 700), min_size=1, max_size=12))
def test_every_tree_stands_in_one_row_and_no_balanced_rows_cost_less(lengths):
    bins = packed(lengths)
    assert sorted(t for row in bins for t in row) == list(range(len(lengths)))

    def cost(rows):
        width = max(sum(lengths[t] for t in row) for row in rows)
        return len(rows) * width * (4096 + width)

    for count in range(1, len(lengths) + 1):
        rows = [[] for _ in range(count)]
        for t in sorted(range(len(lengths)), key=lambda t: -lengths[t]):
            min(rows, key=lambda row: sum(lengths[t] for t in row)).append(t)
        assert cost(bins) <= cost(rows)


@pytest.mark.parametrize("size", [4, 8, 16, 32, 64])
def test_few_tokens_are_padding(size):
    """Of texts as long as PIQA's, a long tail on short ones."""
    rng = random.Random(size)
    shares = []
    for _ in range(50):
        lengths = [min(600, round(rng.lognormvariate(3.9, 0.6))) + 4 for _ in range(size)]
        shape = pack(rows_of_lengths(lengths)).input_ids.shape
        shares.append(shape.numel() / sum(lengths))
    assert sum(shares) / len(shares) < 1.03 and max(shares) < 1.1


@pytest.mark.parametrize("row, shared, without, with_last", [
    (A, 1, 4, 6), (B, 0, 8, 10), (PREFIX, 2, 3, 4), (SINGLE, 0, 2, 3),
])  # fmt: skip
def test_the_tokens_of_a_tree_are_those_that_are_computed(row, shared, without, with_last):
    assert shared_length(row) == shared
    for last, expected in ((False, without), (True, with_last)):
        assert tree_tokens(row, include_last_token=last) == expected
        assert pack([row], include_last_token=last).input_ids.shape == (1, expected)
    assert tree_tokens(row) == without


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.lists(
        st.tuples(st.integers(-1, 1), st.integers(0, 2), st.integers(0, 4)), min_size=1
    ),
    window=st.sampled_from([None, 1, 2, 3]),
)
def test_who_sees_whom_by_its_definition(tokens, window):
    """The same example, shared or on one's own branch, not later and inside the window."""
    columns = [torch.tensor([column, column[::-1]]) for column in zip(*tokens, strict=True)]
    seen = tree_mask(*columns, window=window)
    assert seen.shape == (2, 1, len(tokens), len(tokens)) and seen.dtype == torch.bool
    for i, (example, branch, position) in enumerate(tokens):
        for j, (other, its_branch, its_position) in enumerate(tokens):
            near = 0 <= position - its_position < (window or 10)
            expected = example == other and its_branch in (0, branch) and near
            assert seen[0, 0, i, j] == seen[1, 0, -1 - i, -1 - j] == expected


def test_ids_and_places_are_integers_of_64_bits_and_masks_are_booleans():
    batch = pack([A, B])
    masks = {"mask", "prompt_mask", "ended"}
    for one in fields(batch):
        value = getattr(batch, one.name)
        if isinstance(value, torch.Tensor):
            expected = torch.bool if one.name in masks else torch.int64
            assert value.dtype == expected, one.name


# ---------------------------------------------------------------- what is made of a batch


def with_numbers():
    """A batch with a column of sequences and one of tokens."""
    columns = {"a": torch.tensor([0.0, 1.0, 2.0, 3.0]), "b": torch.arange(12.0).view(4, 3)}
    return pack([A, B]).with_columns(columns)


def test_columns_are_added_to_those_there_are():
    batch = with_numbers().with_columns({"a": torch.zeros(4), "c": torch.ones(4)})
    assert {name: column.tolist()[-1] for name, column in batch.columns.items()} == {
        "a": 0,
        "b": [9, 10, 11],
        "c": 1,
    }
    assert with_numbers().columns["a"].tolist() == [0, 1, 2, 3]


def test_a_batch_goes_to_a_device_with_everything():
    batch, moved = with_numbers(), with_numbers().to(torch.device("meta"))
    expected = batch.text_mask()
    assert {column.device.type for column in moved.columns.values()} == {"meta"}
    assert moved.columns.keys() == {"a", "b"}
    for one in fields(batch):
        before, after = getattr(batch, one.name), getattr(moved, one.name)
        if isinstance(before, torch.Tensor):
            assert after.device.type == "meta" and after.shape == before.shape, one.name
        elif one.name != "columns":
            assert after == before, one.name
    with torch.device("meta"):  # a new tensor is made where the batch is, not where others are made
        assert batch.text_mask().equal(expected)


def test_the_chosen_half_has_the_same_forward_and_every_other_sequence():
    batch = with_numbers()
    half = batch.chosen()
    for name in ("input_ids", "position_ids", "example", "branch", "parents", "targets", "index"):
        assert getattr(half, name).equal(getattr(batch, name))
    for name in ("gather", "mask", "prompt_mask", "last", "ended", "characters"):
        both = getattr(batch, name)
        assert getattr(half, name).tolist() == [both[0].tolist(), both[2].tolist()]
    assert (half.response_lengths, half.prompt_lengths) == ((3, 2), (0, 0))
    assert (half.num_examples, half.num_sequences, half.num_tokens) == (2, 2, 5)
    assert half.columns["a"].tolist() == [0, 2]
    assert half.columns["b"].tolist() == [[0, 1, 2], [6, 7, 8]]
    assert pack([SINGLE]).chosen().gather.tolist() == [[0, 1]]
