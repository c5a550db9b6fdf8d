"""simpo_loss: the mean log-prob of the chosen response above the rejected one's, by a margin."""

from math import exp, inf, log, log1p, nan

import pytest
import torch
from compare import agree, column, gradients, known, random
from reference import simpo
from test_loss_steps import LOGPS, batch_of, near, told, wins
from tolerances import assert_close

from losses import LOSSES, simpo_loss
from losses.simpo import SimPOConfig, step


def pairs(chosen, rejected):
    return {"chosen_mean_logps": column(*chosen), "rejected_mean_logps": column(*rejected)}


def check_goldens(fn):
    """Means of -1/2 and -3/2 a token: rewards of -1 and -3 at β = 2."""
    pair = pairs([-0.5], [-1.5])
    assert_close(fn(**pair, beta=2.0, gamma=0.0), [known(log1p(exp(-2)), 0.12692801104297252)])
    assert_close(fn(**pair, beta=2.0, gamma=1.0), [known(log1p(exp(-1)), 0.31326168751822286)])
    # γ is not multiplied by β: 2.5 - 1.375 of the authors' Llama-3-Instruct
    instruct = known(log1p(exp(-1.125)), 0.28115013624831478)
    assert_close(fn(**pair, beta=2.5, gamma=1.375), [instruct])
    # the rejected one likelier: the margin comes on top of what is missing
    swapped = pairs([-1.5], [-0.5])
    assert_close(fn(**swapped, beta=2.0, gamma=1.0), [known(log1p(exp(3)), 3.048587351573742)])


def check_at_the_target(fn):
    """Rewards that are γ apart cost ln 2, whatever β is and however likely the responses are."""
    for beta, gamma in ((2.0, 1.0), (2.5, 1.25), (10.0, 5.0), (0.25, 0.0)):
        gap = gamma / beta
        pair = pairs([-0.25, -4.0, -64.0], [-0.25 - gap, -4.0 - gap, -64.0 - gap])
        assert_close(fn(**pair, beta=beta, gamma=gamma), [log(2)] * 3)


def check_gradient(fn):
    """-β σ(γ - βd) on the chosen mean, and the opposite on the rejected one."""
    wrong = known(1 / (1 + exp(1)), 0.2689414213699951)  # P(the margin is missed)
    _, grads = gradients(fn, pairs([-0.5], [-1.5]), beta=2.0, gamma=1.0)
    assert_close(grads["chosen_mean_logps"], [-2 * wrong])
    assert_close(grads["rejected_mean_logps"], [2 * wrong])


def check_only_the_difference_matters(fn):
    """No reference, and no likelihood of its own: both a nat less likely is the same loss."""
    near_one = fn(**pairs([-0.5, -1.0], [-1.5, -0.25]), beta=2.0, gamma=0.5)
    far_off = fn(**pairs([-8.5, -9.0], [-9.5, -8.25]), beta=2.0, gamma=0.5)
    assert_close(far_off, near_one)


def check_far_apart(fn):
    """log(1 + exp(-m)) overflows at m = -2e4; the loss there is γ - m, its slope β."""
    pair = pairs([-1.0, -1e4], [-1e4, -1.0])
    (loss,), grads = gradients(fn, pair, weights=torch.ones(2).double(), beta=2.0, gamma=1.0)
    assert_close(loss, [0.0, 2 * 9999.0 + 1])
    assert_close(grads["chosen_mean_logps"], [0.0, -2.0])
    # and on the other side it is exp(-m), not 0
    certain = fn(**pairs([-0.5], [-50.0]), beta=2.0, gamma=1.0)
    assert_close(certain, [known(exp(-98), 2.748785007910215e-43)])
    single = {k: t.float() for k, t in pairs([-1e4, -0.5], [-1.0, -30.5]).items()}
    assert_close(fn(**single, beta=2.0, gamma=1.0), [19999.0, exp(-59)])


def check_reference(fn):
    means = {
        "chosen_mean_logps": random(6, low=-4, high=0, seed=1),
        "rejected_mean_logps": random(6, low=-4, high=0, seed=2),
    }
    for beta, gamma in ((2.0, 1.0), (2.0, 1.6), (2.5, 0.25), (10.0, 3.0), (0.1, 0.5), (1.0, 0.0)):
        agree(fn, simpo, means, units=1, beta=beta, gamma=gamma)
    # every pairing of certain, likely and impossible
    grid = [0.0, -1e-9, -1e-3, -0.7, -2.0, -20.0, -100.0, -1e4]
    grid = torch.cartesian_prod(column(*grid), column(*grid)).T.contiguous()
    means = {"chosen_mean_logps": grid[0], "rejected_mean_logps": grid[1]}
    agree(fn, simpo, means, units=1, beta=2.0, gamma=1.0)


CHECKS = [
    check_goldens,
    check_at_the_target,
    check_gradient,
    check_only_the_difference_matters,
    check_far_apart,
    check_reference,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_simpo_loss(check):
    check(simpo_loss)


# --- in the loop ---------------------------------------------------------------------------------


def test_the_step_takes_means_over_the_response_and_logs_rewards_without_the_margin():
    batch, logps = batch_of(LOGPS)
    chosen, rejected = [-1.5, -5, -1], [-4, -2, -1]
    output = step(logps, batch, SimPOConfig(beta=0.5, gamma=0.25))
    margins = [0.5 * (a - b) for a, b in zip(chosen, rejected, strict=True)]  # 1.25, -1.5, 0
    losses = sum(wins(margin - 0.25) for margin in margins)
    assert {k: v.item() for k, v in output.totals.items()} == {"pairs": near(losses)}
    assert told(output) == {
        "rewards/chosen": near((0.5 * sum(chosen), 3)),
        "rewards/rejected": near((0.5 * sum(rejected), 3)),
        "rewards/margins": near((sum(margins), 3)),
        "rewards/accuracies": (1, 3),
        "mean_logps/chosen": near((sum(chosen), 3)),
        "mean_logps/rejected": near((sum(rejected), 3)),
    }
    assert LOSSES["simpo"].units(batch, SimPOConfig()) == {"pairs": 3}


def test_it_needs_no_reference_and_promises_nothing_of_the_start():
    loss, config = LOSSES["simpo"], SimPOConfig()
    assert (loss.reads, loss.needs(config), loss.packing(config)) == ((), frozenset(), {})
    assert loss.expected_initial_metrics(config) == {} and loss.before_step is None


def test_the_defaults_are_one_setting_of_the_authors():
    """Llama-3-8B-Base: β 2, γ/β 0.5, 6e-7."""
    assert vars(SimPOConfig()) == {"beta": 2.0, "gamma": 1.0}
    assert LOSSES["simpo"].learning_rate == 6e-7


@pytest.mark.parametrize("value", [-1.0, inf, nan])
@pytest.mark.parametrize("name", ["beta", "gamma"])
def test_a_value_without_a_meaning_is_refused(name, value):
    with pytest.raises(ValueError, match=f"--{name} {value} must"):
        SimPOConfig(**{name: value})


def test_no_margin_has_a_meaning_and_no_scale_has_none():
    assert SimPOConfig(beta=1e-3, gamma=0.0).gamma == 0
    with pytest.raises(ValueError, match="--beta 0.0"):
        SimPOConfig(beta=0.0)
