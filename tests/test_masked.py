"""masked_sum and masked_mean: what the mask excludes is not read."""

import pytest
from compare import agree, column, gradients, mask_of, random
from reference import masked_mean as exact_mean
from reference import masked_sum as exact_sum
from tolerances import assert_close, assert_same

from losses import masked_mean, masked_sum

ROWS = column(1, 2, 3, 9, 9, 9).view(2, 3)
MASK = mask_of("110", "000")


def check_sum_goldens(fn):
    assert_close(fn(x=ROWS, mask=MASK), [3.0, 0.0])
    assert_close(fn(x=ROWS, mask=MASK, dim=0), [1.0, 2.0, 0.0])


def check_sum_reference(fn):
    agree(
        fn,
        exact_sum,
        {"x": random(3, 5)},
        units=1,
        fixed={"mask": mask_of("11111", "10010", "00000")},
    )


def check_mean_goldens(fn):
    """C3: over the tokens that are there, not over the width; A16: none at all is 0, not 0/0."""
    (out,), grads = gradients(fn, {"x": ROWS}, mask=MASK)
    assert_close(out, [1.5, 0.0])
    assert_close(grads["x"], [[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])
    assert_close(fn(x=ROWS, mask=MASK, dim=0), [1.0, 2.0, 0.0])


def check_mean_reference(fn):
    agree(
        fn,
        exact_mean,
        {"x": random(3, 5)},
        units=1,
        fixed={"mask": mask_of("11111", "10010", "00000")},
    )


def check_nothing_leaks(fn):
    dirty = ROWS.clone()
    dirty[~MASK] = column(float("nan"), float("inf"), float("-inf"), float("nan"))
    (clean_out,), clean = gradients(fn, {"x": ROWS}, mask=MASK)
    (dirty_out,), grads = gradients(fn, {"x": dirty}, mask=MASK)
    assert_same(dirty_out, clean_out)
    assert_same(grads["x"], clean["x"])


SUM_CHECKS = [check_sum_goldens, check_sum_reference, check_nothing_leaks]
MEAN_CHECKS = [check_mean_goldens, check_mean_reference, check_nothing_leaks]


@pytest.mark.parametrize("check", SUM_CHECKS, ids=lambda c: c.__name__)
def test_masked_sum(check):
    check(masked_sum)


@pytest.mark.parametrize("check", MEAN_CHECKS, ids=lambda c: c.__name__)
def test_masked_mean(check):
    check(masked_mean)
