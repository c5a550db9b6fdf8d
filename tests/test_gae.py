"""gae: how much better each token did than the critic expected."""

import pytest
import torch
from compare import agree, column, mask_of, random
from reference import gae as exact_gae
from tolerances import assert_close

from losses import gae

# A score of 1 on the last token, minus a KL penalty on all three; the critic sees it coming.
REWARDS, VALUES, ALL = column(-0.01, -0.02, 0.97)[None], column(0.1, 0.2, 0.3)[None], mask_of("111")
ANCHOR = {"rewards": REWARDS, "values": VALUES, "mask": ALL}


def batch(rows, columns, mask, seed=0):
    return {
        "rewards": random(rows, columns, seed=seed),
        "mask": mask,
        "values": random(rows, columns, seed=seed + 1),
    }


RAGGED = mask_of("111111", "111000", "010000", "000000", "001110")


def check_goldens(fn):
    d2 = 0.97 - 0.3  # 0.67, nothing after the last token
    d1 = -0.02 + 0.3 - 0.2  # 0.08
    d0 = -0.01 + 0.2 - 0.1  # 0.09
    advantages, returns = fn(**ANCHOR, gamma=1.0, lam=0.95)
    a1 = d1 + 0.95 * d2
    assert_close(advantages, [[d0 + 0.95 * a1, a1, d2]])
    assert_close(advantages, [[0.770675, 0.7165, 0.67]])
    assert_close(returns, [[0.870675, 0.9165, 0.97]])
    discounted, _ = fn(**ANCHOR, gamma=0.99, lam=0.95)
    assert_close(discounted, [[0.7530604675, 0.707135, 0.67]])


def check_cut_rows_bootstrap(fn):
    """G5: a row cut at the length limit is worth what the critic says follows; here 0.4."""
    advantages, returns = fn(**ANCHOR, gamma=1.0, lam=0.95, last_values=column(0.4))
    assert_close(advantages, [[1.131675, 1.0965, 0.67 + 0.4]])
    # in the middle of a padded row it follows the last response token, not the last column
    padded = {
        "rewards": column(-0.01, -0.02, 0.97, 9, 9)[None],
        "mask": mask_of("11100"),
        "values": column(0.1, 0.2, 0.3, 9, 9)[None],
    }
    advantages, returns = fn(**padded, gamma=1.0, lam=0.95, last_values=column(0.4))
    assert_close(advantages, [[1.131675, 1.0965, 1.07, 0, 0]])
    assert_close(returns, [[1.231675, 1.2965, 1.37, 0, 0]])


def check_padding_does_not_bootstrap(fn):
    """G3: critics say something at padding too. 0.7 = 1 - 0.3, not 1 + 5 - 0.3 and more."""
    advantages, _ = fn(
        rewards=column(0, 0, 1, 0, 0)[None],
        values=column(0.1, 0.2, 0.3, 5, 5)[None],
        mask=mask_of("11100"),
        gamma=1.0,
        lam=0.95,
    )
    assert_close(advantages[:, 2:], [[0.7, 0, 0]])


def check_masked_token_inside(fn):
    """G6: a tool's answer in mid-response is no action. Without it nothing else changes."""
    advantages, returns = fn(
        rewards=column(-0.01, 7, -0.02, 0.97)[None],
        mask=mask_of("1011"),
        values=column(0.1, 7, 0.2, 0.3)[None],
        gamma=0.99,
        lam=0.95,
    )
    expected, expected_returns = fn(**ANCHOR, gamma=0.99, lam=0.95)
    assert_close(advantages[:, [0, 2, 3]], expected)
    assert_close(returns[:, [0, 2, 3]], expected_returns)


def check_lam_1(fn):
    """lam = 1: discounted rewards to go, minus the value. G13: the reward of the token included."""
    rewards, values = column(0, 0, 1)[None], column(5, 6, 7)[None]
    advantages, returns = fn(rewards=rewards, values=values, mask=ALL, gamma=0.99, lam=1.0)
    to_go = [[0.99**2, 0.99, 1.0]]
    assert_close(returns, to_go)
    assert_close(advantages, torch.tensor(to_go, dtype=torch.float64) - values)


def check_lam_0(fn):
    """lam = 0: one-step TD errors."""
    data = batch(3, 5, torch.ones(3, 5, dtype=torch.bool))
    advantages, _ = fn(**data, gamma=0.9, lam=0.0)
    following = torch.cat([data["values"][:, 1:], torch.zeros(3, 1)], dim=1)
    assert_close(advantages, data["rewards"] + 0.9 * following - data["values"], scale=[[3.0]])


def check_gamma_0(fn):
    """gamma = 0: the reward at hand and nothing else."""
    data = batch(3, 5, torch.ones(3, 5, dtype=torch.bool))
    advantages, returns = fn(**data, gamma=0.0, lam=0.95, last_values=column(9, 9, 9))
    assert_close(advantages, data["rewards"] - data["values"])
    assert_close(returns, data["rewards"], scale=[[3.0]])


def check_perfect_critic(fn):
    """A critic that knows every reward to come is never surprised."""
    rewards = random(2, 4)
    values = rewards.flip(1).cumsum(1).flip(1)
    advantages, returns = fn(
        rewards=rewards, values=values, gamma=1.0, lam=0.7, mask=torch.ones(2, 4, dtype=torch.bool)
    )
    assert_close(advantages, torch.zeros(2, 4), scale=[[4.0]])
    assert_close(returns, values, scale=[[4.0]])


def check_returns(fn):
    """Targets of the critic: advantages + values on response tokens, 0 elsewhere."""
    data = batch(5, 6, RAGGED)
    advantages, returns = fn(**data, gamma=0.99, lam=0.95)
    outside = ~RAGGED
    assert (advantages[outside] == 0).all() and (returns[outside] == 0).all()
    assert_close(returns, torch.where(RAGGED, advantages + data["values"], 0.0))


def check_reference(fn):
    def twin(rewards, values, mask, last_values=0, **options):
        return exact_gae(rewards, values, mask, last_values=last_values, **options)

    gaps = mask_of("111111", "101000", "010000", "000000", "011011")
    for mask in (RAGGED, gaps):
        data = batch(5, 6, mask)
        fixed = {"mask": data.pop("mask")}
        for gamma, lam in [(1.0, 0.95), (0.9, 0.5), (0.0, 0.95), (1.0, 0.0), (1.0, 1.0)]:
            agree(fn, twin, data, units=1, fixed=fixed, gamma=gamma, lam=lam)
        cut = {"last_values": random(5, seed=9)}
        agree(fn, twin, data | cut, units=1, fixed=fixed, gamma=0.97, lam=0.9)
    one = batch(3, 1, mask_of("1", "0", "1"))
    agree(fn, twin, one, units=1, fixed={"mask": one.pop("mask")}, gamma=0.9, lam=0.9)


CHECKS = [
    check_goldens,
    check_cut_rows_bootstrap,
    check_padding_does_not_bootstrap,
    check_masked_token_inside,
    check_lam_1,
    check_lam_0,
    check_gamma_0,
    check_perfect_critic,
    check_returns,
    check_reference,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_gae(check):
    check(gae)


def test_no_columns():
    advantages, returns = gae(torch.zeros(2, 0), torch.zeros(2, 0), mask_of("", ""))
    assert advantages.shape == returns.shape == (2, 0)
