"""The order in which a run takes its rows: epoch after epoch, each in an order of its own."""

from collections import Counter
from itertools import permutations

import pytest
from runs import metrics, pocket_rows, run, write_rows

from data.batches import step_rows


def epochs(rows, count, seed=0, batch_size=1):
    """The orders of the first `count` epochs, from one step after another."""
    steps = range(1, rows * count // batch_size + 1)
    taken = [row for step in steps for row in step_rows(step, rows, batch_size, seed)]
    return [tuple(taken[i : i + rows]) for i in range(0, len(taken), rows)]


@pytest.mark.parametrize("batch_size", [1, 5, 20, 60])
def test_every_epoch_takes_every_row_once_in_an_order_of_its_own(batch_size):
    """Of 20! orders no two that are drawn are the same, and none is the order of the file."""
    drawn = [order for seed in (0, 1) for order in epochs(20, 3, seed, batch_size)]
    assert all(sorted(order) == list(range(20)) for order in drawn)
    assert len({tuple(range(20)), *drawn}) == 1 + 2 * 3


def test_an_order_is_not_another_one_turned():
    """Rows that meet in one epoch's step are not those that meet in the next one's."""
    first, second = epochs(40, 2)
    neighbours = [set(zip(order, order[1:] + order[:1], strict=True)) for order in (first, second)]
    assert len(neighbours[0] & neighbours[1]) < 8  # 1 is expected of two orders drawn anew


def test_all_orders_are_as_likely():
    """1200 epochs of three rows: each of the six orders 200 times, give or take four times 13."""
    counts = Counter(epochs(3, 1200))
    assert set(counts) == set(permutations(range(3)))
    assert all(abs(count - 200) < 4 * 13 for count in counts.values())  # sqrt(1200 5/36) = 12.9


def test_a_step_across_the_end_of_an_epoch_goes_on_with_the_next():
    first, second, third = epochs(7, 3)
    assert step_rows(1, 7, 5, 0) == list(first[:5])
    assert step_rows(2, 7, 5, 0) == [*first[5:], *second[:3]]
    assert step_rows(1, 7, 21, 0) == [*first, *second, *third]


def test_a_step_does_not_depend_on_those_asked_for_before():
    steps = [1, 9, 4, 9, 2, 30, 1]
    alone = {step: step_rows(step, 7, 3, 0) for step in sorted(set(steps))}
    for step in steps:
        assert step_rows(step, 8, 3, 0) != step_rows(step, 8, 3, 1)  # other rows, other seeds
        assert step_rows(step, 7, 3, 0) == alone[step]


def test_a_run_takes_its_rows_in_another_order_in_the_second_epoch(tmp_path):
    """One row a step and no weight that moves: a step's loss says which row it took."""
    data, out = write_rows(tmp_path / "data", *pocket_rows(8, 4)), tmp_path / "out"
    flags = ["--data", data, "--output_dir", out, "--batch_size", 1, "--epochs", 2]
    done = run("--loss", "sft", *flags, "--learning_rate", 1e-30)
    assert done.code == 0 and done.err == "", done.err
    losses = [row["loss"] for row in metrics(out)[0]]
    first, second = losses[:8], losses[8:]
    assert len(set(first)) == 8 and set(first) == set(second) and first != second
