"""A split: what its rows cost, and any of them as one batch with their own columns."""

import torch

from data.row_table import Row
from data.splits import Split

ROWS = [
    Row(0, [10, 11], [[20, 21, 22], [20, 31]], [True, False], [3, 2]),
    Row(1, [40], [[50, 51], [60, 61, 62, 63]], [True, True], [5, 6]),
    Row(2, [70, 71], [[72], [73]], [True, True], [1, 1]),
]
SEQUENCES = torch.arange(6.0)
TOKENS = torch.arange(60.0).view(6, 10)
CPU = torch.device("cpu")


def test_the_tokens_of_a_row_depend_on_how_it_is_packed():
    assert Split(ROWS).lengths == [4, 5, 2]
    assert Split(ROWS, packing={"include_last_token": True}).lengths == [6, 7, 4]
    assert Split(ROWS, packing={"prompts": True}).lengths == [4, 5, 2]


def test_all_token_ids():
    ids = {10, 11, 20, 21, 22, 31, 40, 50, 51, 60, 61, 62, 63, 70, 71, 72, 73}
    assert Split(ROWS).table.token_ids == ids


def test_a_batch_has_its_rows_columns_cut_to_its_width():
    split = Split(ROWS, columns={"a": SEQUENCES}).with_columns({"b": TOKENS})
    batch = split.batch([2, 0], CPU)
    assert batch.index.tolist() == [2, 0] and not batch.dummy
    assert batch.response_lengths == (1, 1, 3, 2)
    assert batch.columns["a"].tolist() == [4, 5, 0, 1]
    assert batch.columns["b"].tolist() == [[40, 41, 42], [50, 51, 52], [0, 1, 2], [10, 11, 12]]
    assert split.columns.keys() == {"a", "b"} and split.rows is ROWS
    single = Split([Row(i, [5], [[6] * (i + 1)], [True], [1]) for i in range(3)])
    batch = single.with_columns({"a": SEQUENCES[:3]}).batch([1], CPU)
    assert batch.columns["a"].tolist() == [1]


def test_layout_packing_and_device_are_passed_on():
    packing = {"include_last_token": True, "prompts": True}
    batch = Split(ROWS, "rectangle", packing, {"a": SEQUENCES}).batch([0], torch.device("meta"))
    assert (batch.layout, batch.include_last_token) == ("rectangle", True)
    assert batch.prompt_lengths == (1, 1)
    assert batch.input_ids.device.type == batch.columns["a"].device.type == "meta"
    assert Split(ROWS).batch([0], CPU).layout == "tree"


def test_without_rows_the_first_stands_in_and_counts_for_nothing():
    batch = Split(ROWS, columns={"a": SEQUENCES}).batch([], CPU)
    assert batch.dummy and batch.index.tolist() == [0]
    assert batch.columns["a"].tolist() == [0, 1]
