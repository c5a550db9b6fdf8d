"""ppo_policy_loss and ppo_value_loss: the two clipped halves of PPO."""

from math import exp, log

import pytest
import torch
from compare import agree, column, gradients, known, mask_of, random
from reference import ppo_policy, ppo_value
from tolerances import assert_close

from losses import ppo_policy_loss, ppo_value_loss

ONE = mask_of("1")
RAGGED = mask_of("11111", "11000", "00000", "01110")


# ------------------------------------------------------------------------------- policy


def tokens(ratios, advantages):
    """One row of tokens with these probability ratios to the old policy."""
    logps = torch.tensor([[log(r) for r in ratios]], dtype=torch.float64)
    return {
        "logps": logps - 1.0,
        "old_logps": torch.full_like(logps, -1.0),
        "advantages": column(*advantages)[None],
    }


def check_policy_goldens(fn):
    """The five corners. H1: at ratio 5 the loss is 5; dual-clip would say 3."""
    corners = tokens([1.5, 0.5, 1.5, 0.5, 5.0], [1, 1, -1, -1, -1])
    loss = fn(**corners, mask=mask_of("11111"), clip=0.2)
    assert_close(loss, [[-1.2, -0.5, 1.5, 0.8, 5.0]])
    wider = fn(**corners, mask=mask_of("11111"), clip=0.6)
    assert_close(wider, [[-1.5, -0.5, 1.5, 0.5, 5.0]])


def check_policy_gradient(fn):
    """-ratio A where the ratio may still gain, 0 where it has gained enough. Never in between."""
    corners = tokens([1.5, 0.5, 1.5, 0.5, 1.1], [1, 1, -1, -1, 3])
    _, grads = gradients(fn, corners, mask=mask_of("11111"), clip=0.2)
    weights = column(1, -0.5, 2, 0.75, -1.5)
    slope = column(0, -0.5, 1.5, 0, -1.1 * 3)
    assert_close(grads["logps"], [(weights * slope).tolist()])
    assert_close(grads["old_logps"], [(-weights * slope).tolist()])


def check_first_step(fn):
    """Ratio 1 (F1): the loss is -A, its gradient -A too: the plain policy gradient."""
    logps, advantages = random(4, 5, low=-9, high=0), random(4, 5, seed=3)
    (loss,), grads = gradients(
        fn, {"logps": logps, "old_logps": logps, "advantages": advantages}, mask=RAGGED
    )
    assert_close(loss, torch.where(RAGGED, -advantages, 0.0))
    weights = torch.tensor([1, -0.5, 2, 0.75, -1.5], dtype=torch.float64).repeat(4, 1)
    assert_close(grads["logps"], torch.where(RAGGED, -weights * advantages, 0.0))


def check_policy_large_ratio(fn):
    """exp(20): a big number, not inf. With A > 0 it is clipped, with A < 0 it is not."""
    large = {
        "logps": column(0, 0)[None],
        "old_logps": column(-20, -20)[None],
        "advantages": column(1, -1)[None],
    }
    (loss,), grads = gradients(fn, large, mask=mask_of("11"))
    assert_close(loss, [[-1.2, known(exp(20), 485165195.4097903)]])
    assert_close(grads["logps"], [[0.0, -0.5 * exp(20)]])


def check_policy_reference(fn):
    old = random(4, 5, low=-8, high=0, seed=1)
    for spread in (0.4, 2.0, 20.0):
        logps = old + random(4, 5, low=-spread, high=spread, seed=2)
        agree(
            fn,
            ppo_policy,
            {"logps": logps, "old_logps": old, "advantages": random(4, 5, low=-2, high=2, seed=3)},
            units=2,
            fixed={"mask": RAGGED},
            clip=0.2,
        )


POLICY_CHECKS = [
    check_policy_goldens,
    check_policy_gradient,
    check_first_step,
    check_policy_large_ratio,
    check_policy_reference,
]


@pytest.mark.parametrize("check", POLICY_CHECKS, ids=lambda c: c.__name__)
def test_ppo_policy_loss(check):
    check(ppo_policy_loss)


def test_ratio_that_overflows():
    """exp(100) is inf in float32.  With A > 0 it is clipped: the loss is -1.2 and its slope 0."""
    far = {"logps": torch.zeros(1, 2), "old_logps": torch.full((1, 2), -100.0)}
    far["advantages"] = torch.tensor([[1.0, 0.0]])
    (loss,), grads = gradients(ppo_policy_loss, far, mask=mask_of("11"))
    assert_close(loss, [[-1.2, 0.0]])
    assert_close(grads["logps"], [[0.0, 0.0]])


# -------------------------------------------------------------------------------- value


def state(value, old, target):
    return {
        "values": column(value)[None],
        "old_values": column(old)[None],
        "returns": column(target)[None],
    }


def check_value_goldens(fn):
    """H2: from 0 to 1 with a target of 0.5. Max rule: (1 - 0.5)^2 beats (0.2 - 0.5)^2."""
    loss = fn(**state(1, 0, 0.5), mask=ONE, clip=0.2)
    assert_close(loss, [[known(0.5 * max(0.5**2, 0.3**2), 0.125)]])
    # past the target on the other side, the clipped one is worse: 0.2 is far from 0.9
    assert_close(fn(**state(1, 0, 0.9), mask=ONE, clip=0.2), [[known(0.5 * 0.7**2, 0.245)]])
    assert_close(fn(**state(-1, 0, -0.9), mask=ONE, clip=0.2), [[0.5 * 0.7**2]])
    # the interval is old ± clip, also around a large old value
    assert_close(fn(**state(10.3, 10, 10.3), mask=ONE, clip=0.2), [[0.5 * 0.1**2]], scale=[[10.0]])


def check_value_gradient(fn):
    """v - R while free; 0 where the clipped error is the larger one: no more pull that way."""
    _, grads = gradients(fn, state(1, 0, 0.5), mask=ONE, clip=0.2)
    assert_close(grads["values"], [[0.5]])
    assert_close(grads["returns"], [[-0.5]])
    _, grads = gradients(fn, state(1, 0, 0.9), mask=ONE, clip=0.2)
    assert_close(grads["values"], [[0.0]])
    assert_close(grads["old_values"], [[-0.7]])


def check_value_unclipped(fn):
    """clip = inf is half the squared error, and so is any value that has not moved."""
    values, returns = random(4, 5, low=-3, high=3, seed=1), random(4, 5, low=-3, high=3, seed=2)
    half = torch.where(RAGGED, 0.5 * (values - returns) ** 2, 0.0)
    rest = {"returns": returns, "mask": RAGGED}
    far = random(4, 5, low=-9, high=9, seed=3)
    assert_close(fn(values=values, old_values=far, **rest, clip=float("inf")), half)
    assert_close(fn(values=values, old_values=values, **rest, clip=0.2), half)


def check_value_reference(fn):
    def coarse(x):  # 1/16ths, exact in bfloat16: rounding moves no value across a clip edge
        return (16 * x).round() / 16

    old = coarse(random(4, 5, low=-2, high=2, seed=1))
    for spread in (0.2, 0.5, 4.0):
        tensors = {
            "values": old + coarse(random(4, 5, low=-spread, high=spread, seed=2)),
            "old_values": old,
            "returns": random(4, 5, low=-2, high=2, seed=3),
        }
        agree(fn, ppo_value, tensors, units=2, fixed={"mask": RAGGED}, clip=0.25)


VALUE_CHECKS = [
    check_value_goldens,
    check_value_gradient,
    check_value_unclipped,
    check_value_reference,
]


@pytest.mark.parametrize("check", VALUE_CHECKS, ids=lambda c: c.__name__)
def test_ppo_value_loss(check):
    check(ppo_value_loss)
