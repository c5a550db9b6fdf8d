"""orpo_loss: likelihood of the chosen response plus a log odds-ratio; the corner is p = 1."""

from math import exp, expm1, log, log1p

import pytest
import torch
from compare import agree, column, gradients, known, random
from mpmath import mpf
from reference import log_odds as exact_log_odds
from reference import orpo
from tolerances import assert_close

from losses import log_odds, orpo_loss


def pairs(chosen, rejected):
    return {"chosen_mean_logps": column(*chosen), "rejected_mean_logps": column(*rejected)}


def check_goldens(fn):
    # p = 2/3 has odds 2, p = 1/3 has odds 1/2: the odds-ratio is 4
    loss = fn(**pairs([log(2 / 3)], [log(1 / 3)]), lam=0.1)
    assert_close(loss, [known(log(1.5) + 0.1 * log(1 + 1 / 4), 0.4277794632395856)])
    # odds(a) = 1 / (exp(-a) - 1), so the log odds-ratio of -0.5 and -1.5 is
    z = known(log(expm1(1.5) / expm1(0.5)), 1.6802696706417346)
    penalty = known(log(1 + exp(-z)), 0.1708592171464785)
    assert_close(
        fn(**pairs([-0.5], [-1.5]), lam=0.1), [known(0.5 + 0.1 * penalty, 0.5170859217146478)]
    )
    assert_close(fn(**pairs([-0.5], [-1.5]), lam=1.0), [0.5 + penalty])


def check_gradient(fn):
    # d log-odds / da = 1 / (1 - p)
    lose = 1 / (1 + expm1(1.5) / expm1(0.5))  # σ(-z)
    chosen = known(-lose / (1 - exp(-0.5)), -0.3991664591575946)
    _, grads = gradients(fn, pairs([-0.5], [-1.5]), lam=0.1)
    assert_close(grads["chosen_mean_logps"], [-1 + 0.1 * chosen])
    assert_close(grads["rejected_mean_logps"], [0.1 * lose / (1 - exp(-1.5))])


def check_confident_model(fn):
    """D1, D2: chosen at -1e-9. The slope of the penalty tends to -1 / (exp(1.5) - 1)."""
    z = known(log(expm1(1.5) / expm1(1e-9)), 21.97078337752096)
    slope = known(1 / expm1(-1e-9) / (1 + expm1(1.5) / expm1(1e-9)), -0.287216916993591)
    (loss,), grads = gradients(fn, pairs([-1e-9], [-1.5]), lam=0.1)
    assert_close(loss, [1e-9 + 0.1 * log1p(exp(-z))])
    assert_close(grads["chosen_mean_logps"], [-1 + 0.1 * slope])


def check_antisymmetry(fn):
    """-logsigmoid(z) + logsigmoid(-z) = -z, so swapping the two moves the penalty by z."""
    chosen, rejected = [-0.7, -2.0, -1e-3], [-1.1, -0.1, -9.0]
    penalty = fn(**pairs(chosen, rejected), lam=1.0) + column(*chosen)
    swapped = fn(**pairs(rejected, chosen), lam=1.0) + column(*rejected)
    z = [log(expm1(-r) / expm1(-c)) for c, r in zip(chosen, rejected, strict=True)]
    assert_close(swapped - penalty, z, scale=[20.0] * 3)


def check_certainty(fn):
    """p = 1 exactly, where the odds are infinite: finite in value and gradient all the same."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        tensors = pairs([0.0, -1.0, 0.0, 0.0], [-1.0, 0.0, 0.0, -1e4])
        (loss,), grads = gradients(fn, {k: t.to(dtype) for k, t in tensors.items()}, lam=0.1)
        assert loss.isfinite().all() and all(g.isfinite().all() for g in grads.values())
        # chosen certain: nothing to pay (a rejected one that is certain as well: ln 2)
        assert_close(loss[[0, 2, 3]], [0.0, 0.1 * log(2), 0.0], scale=[1e-30, 1.0, 1e-30])
        assert loss[1] > 1.0  # rejected certain: the likelihood, and as much again as can be


def check_reference(fn):
    agree(
        fn,
        orpo,
        {
            "chosen_mean_logps": random(6, low=-4, high=0, seed=1),
            "rejected_mean_logps": random(6, low=-4, high=0, seed=2),
        },
        units=1,
        lam=0.1,
    )
    # every pairing of nearly certain, likely, even (-ln 2, where the branch is) and impossible
    grid = [-1e-12, -1e-9, -3e-8, -1e-5, -0.69, -0.6932, -2.0, -20.0, -100.0, -1e4]
    grid = torch.cartesian_prod(column(*grid), column(*grid)).T.contiguous()
    agree(
        fn, orpo, {"chosen_mean_logps": grid[0], "rejected_mean_logps": grid[1]}, units=1, lam=0.25
    )


CHECKS = [
    check_goldens,
    check_gradient,
    check_confident_model,
    check_antisymmetry,
    check_certainty,
    check_reference,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_orpo_loss(check):
    check(orpo_loss)


def test_log_odds():
    """From both sides of p = 1/2, and its symmetry: odds(1 - p) = 1 / odds(p)."""
    grid = column(-1e-12, -1e-8, -1e-7, -0.1, -0.69, -0.7, -5.0, -40.0, -1e4)
    assert_close(log_odds(grid), [float(exact_log_odds(mpf(a)).v) for a in grid.tolist()])
    assert_close(
        log_odds(column(log(1 / 2), log(4 / 5), log(1 / 5))),
        [0.0, log(4), -log(4)],
        scale=[1.0] * 3,
    )
    assert_close(log_odds(torch.zeros(1)), [-log(torch.finfo(torch.float32).tiny)])
