"""sft_loss: minus the log-probability, on response tokens."""

from math import log

import pytest
import torch
from compare import agree, gradients, known, mask_of, random, weights_like
from reference import sft
from tolerances import assert_close, assert_same

from losses import sft_loss


def check_goldens(fn):
    # a fair coin, a die with four sides, certainty; then two prompt tokens
    logps = torch.tensor([[-log(2), -log(4), 0.0, -9.0, -9.0]], dtype=torch.float64)
    loss = fn(logps=logps, mask=mask_of("11100"))
    assert_close(loss, [[known(log(2), 0.6931471805599453), log(4), 0, 0, 0]])


def check_mask_edges(fn):
    """B1: three response tokens behind two of the prompt; the first and the last both count."""
    logps = random(1, 6, low=-5, high=-1)
    mask = mask_of("001110")
    loss = fn(logps=logps, mask=mask)
    assert loss.nonzero()[:, 1].tolist() == [2, 3, 4]


def check_gradient(fn):
    mask = mask_of("0110", "0001", "0000")
    (loss,), grads = gradients(fn, {"logps": random(3, 4)}, mask=mask)
    assert_same(grads["logps"], torch.where(mask, -weights_like(loss), 0.0))


def check_reference(fn):
    mask = mask_of("11111", "10000", "00000", "01110")
    agree(fn, sft, {"logps": random(4, 5, low=-30, high=0)}, units=2, fixed={"mask": mask})
    agree(fn, sft, {"logps": random(4, 5, low=-1e4, high=-1e3)}, units=2, fixed={"mask": mask})


CHECKS = [check_goldens, check_mask_edges, check_gradient, check_reference]


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_sft_loss(check):
    check(sft_loss)
