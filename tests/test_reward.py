"""reward_loss: the chosen response scores above the rejected one (Bradley-Terry)."""

from math import exp, log

import pytest
import torch
from compare import agree, column, gradients, known, random
from reference import reward
from tolerances import assert_close

from losses import reward_loss


def scores(chosen, rejected):
    return {"chosen_scores": column(*chosen), "rejected_scores": column(*rejected)}


def check_goldens(fn):
    pair = scores([1.0], [0.2])
    swapped = scores([0.2], [1.0])
    assert_close(fn(**pair), [known(log(1 + exp(-0.8)), 0.3711006659477777)])
    assert_close(fn(**swapped), [known(log(1 + exp(0.8)), 1.1711006659477778)])
    # E10: a margin makes the gap look smaller, 0.8 - 0.5
    assert_close(fn(**pair, margin=column(0.5)), [known(log(1 + exp(-0.3)), 0.5543552444685271)])


def check_centring(fn):
    """E9: on the square of the sum, 1.2^2, not on the sum of the squares, 1.04."""
    pair = scores([1.0], [0.2])
    centring = fn(**pair, center_coef=0.01) - fn(**pair)
    assert_close(centring, [known(0.01 * 1.2**2, 0.0144)], scale=[1.0])


def check_equal_scores(fn):
    """A model that cannot tell the two apart pays ln 2, whatever the score."""
    same = [-1e4, -3.0, 0.0, 7.0, 1e4]
    assert_close(fn(**scores(same, same)), [log(2)] * 5)


def check_gradient(fn):
    """-σ(-gap) on the chosen score, and the opposite on the rejected one."""
    _, grads = gradients(fn, scores([1.0], [0.2]))
    wrong = known(1 / (1 + exp(0.8)), 0.31002551887238755)  # P(rejected wins)
    assert_close(grads["chosen_scores"], [-wrong])
    assert_close(grads["rejected_scores"], [wrong])


def check_far_apart(fn):
    """E7: log(1 + exp(-gap)) overflows at -1e4; the loss there is the gap itself, its slope 1."""
    (loss,), grads = gradients(fn, scores([0.0, 0.0], [100.0, 1e4]))
    assert_close(loss, [100.0, 1e4])
    assert_close(grads["rejected_scores"], [1.0, -0.5])  # times the weights 1 and -1/2
    # and on the other side it is exp(-gap), not 0
    assert_close(fn(**scores([100.0], [0.0])), [known(exp(-100), 3.720075976020836e-44)])
    single = {k: t.float() for k, t in scores([0.0, 60.0], [1e4, 0.0]).items()}
    assert_close(fn(**single), [1e4, exp(-60)])


def check_reference(fn):
    pairs = {
        "chosen_scores": random(6, low=-3, high=3, seed=1),
        "rejected_scores": random(6, low=-3, high=3, seed=2),
    }
    margin = {"margin": random(6, low=0, high=2, seed=3)}
    agree(fn, reward, pairs, units=1)
    agree(fn, reward, pairs | margin, units=1)
    agree(fn, reward, pairs | margin, units=1, center_coef=0.01)
    gaps = column(-1e4, -100.0, -30.0, -1e-6, 1e-6, 30.0, 100.0, 1e4)
    agree(fn, reward, {"chosen_scores": gaps, "rejected_scores": torch.zeros_like(gaps)}, units=1)


CHECKS = [
    check_goldens,
    check_centring,
    check_equal_scores,
    check_gradient,
    check_far_apart,
    check_reference,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_reward_loss(check):
    check(reward_loss)
