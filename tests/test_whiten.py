"""masked_whiten: mean 0 and variance 1 over the True positions."""

from math import sqrt

import pytest
import torch
from compare import agree, column, known, mask_of, random
from reference import whiten
from tolerances import assert_close

from losses import masked_whiten

RAGGED = mask_of("1110", "1100", "0000")


def check_goldens(fn):
    # 1 2 3 4: mean 2.5, population variance (2.25 + 0.25 + 0.25 + 2.25) / 4 = 1.25
    ones = mask_of("1111")
    sd = sqrt(1.25 + 1e-8)
    white = [[-1.5 / sd, -0.5 / sd, 0.5 / sd, known(1.5 / sd, 1.3416407811333107)]]
    assert_close(fn(x=column(1, 2, 3, 4)[None], mask=ones), white)
    # G9: the advantages of test_gae.py, 0.770675 first. Bessel's n - 1 would give 1.024418.
    advantages = [0.770675, 0.7165, 0.67]
    mean = sum(advantages) / 3
    sd = sqrt(sum((a - mean) ** 2 for a in advantages) / 3 + 1e-8)
    assert_close(
        fn(x=column(*advantages)[None], mask=mask_of("111")),
        [
            [
                known((0.770675 - mean) / sd, 1.254649422399277),
                (0.7165 - mean) / sd,
                (0.67 - mean) / sd,
            ]
        ],
    )


def check_moments(fn):
    """G7: centred by default, over the whole batch and not row by row."""
    x = 3 + 2 * random(3, 4, seed=4)
    white = fn(x=x, mask=RAGGED)[RAGGED]
    assert_close(white.mean(), 0.0, scale=1.0)
    variance = x[RAGGED].var(correction=0)
    assert_close((white**2).mean(), variance / (variance + 1e-8))
    assert abs(fn(x=x, mask=RAGGED)[0].sum()) > 0.1  # a row by itself need not be centred


def check_keeps_mean(fn):
    """shift_mean=False: scale only, for rewards, whose sign means something."""
    x = 3 + 2 * random(3, 4, seed=4)
    kept = fn(x=x, mask=RAGGED, shift_mean=False)[RAGGED]
    assert_close(kept.mean(), x[RAGGED].mean())
    assert_close(kept - kept.mean(), fn(x=x, mask=RAGGED)[RAGGED], scale=[5.0] * 5)


def check_outside(fn):
    """G12: zero where the mask is False, with and without the mean."""
    for shift_mean in (True, False):
        white = fn(x=5 + random(3, 4), mask=RAGGED, shift_mean=shift_mean)
        assert (white[~RAGGED] == 0).all()


def check_constant(fn):
    """G14: nothing to scale by, and nothing explodes. One token, and none, are constant too."""
    for mask in ("11", "10", "00"):
        mask = mask_of(mask)
        assert_close(fn(x=column(7, 7)[None], mask=mask), [[0.0, 0.0]])
        assert_close(fn(x=column(7, 7)[None], mask=mask, shift_mean=False), 7.0 * mask)


def check_linear(fn):
    """Invariant to the critic's units: whiten(100 x + 1000) = whiten(x), up to the 1e-8."""
    x = random(3, 4, seed=4)
    bent = 1e-8 / x[RAGGED].var(correction=0)
    change = fn(x=100 * x + 1000, mask=RAGGED) - fn(x=x, mask=RAGGED)
    assert (change.abs() < 2 * bent).all()


def check_reference(fn):
    for x in (random(3, 4, seed=4), 3 + 2 * random(3, 4, seed=5), 1e-4 * random(3, 4, seed=6)):
        for mask in (RAGGED, mask_of("1111", "1111", "1111"), mask_of("1000", "0011", "0000")):
            for shift_mean in (True, False):
                agree(fn, whiten, {"x": x}, units=0, fixed={"mask": mask}, shift_mean=shift_mean)


CHECKS = [
    check_goldens,
    check_moments,
    check_keeps_mean,
    check_outside,
    check_constant,
    check_linear,
    check_reference,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_masked_whiten(check):
    check(masked_whiten)


def test_any_shape():
    x, mask = random(2, 3, 4), torch.ones(2, 3, 4, dtype=torch.bool)
    assert_close(masked_whiten(x, mask).flatten(), masked_whiten(x.flatten(), mask.flatten()))


def test_the_mean_is_the_nearest_there_is():
    """In float32 the sum of these is rounded by 1 and its third again; 4/3 off is too far."""
    x = [12053468.0, 10725233.0, 13117062.0]
    mean = sum(x) / 3
    deviation = sqrt(sum((a - mean) ** 2 for a in x) / 3)
    white = masked_whiten(torch.tensor(x), torch.ones(3, dtype=torch.bool))
    assert_close(white, [(a - mean) / deviation for a in x], scale=[1.0] * 3)


def test_padding_does_not_outweigh_what_is_tiny():
    white = masked_whiten(column(1e-14, 3e-14, 9, 9), mask_of("1100")[0])
    assert_close(white, [-1e-10, 1e-10, 0, 0])
