"""kl_estimate: three estimates of KL(policy || reference) from the policy's own samples."""

from math import exp, log

import pytest
import torch
from compare import agree, column, gradients, known, random
from reference import kl
from tolerances import assert_close

from losses import kl_estimate

# a policy and a reference over two tokens, and their divergence
P, Q = column(0.8, 0.2), column(0.5, 0.5)
KL = known(0.8 * log(0.8 / 0.5) + 0.2 * log(0.2 / 0.5), 0.19274475702175743)


def logps(d):
    return {"logps": column(d), "ref_logps": column(0.0)}


def check_goldens(fn):
    # the policy finds the token twice as likely as the reference
    d = log(2)
    assert_close(fn(**logps(d), kind="k1"), [known(d, 0.6931471805599453)])
    assert_close(fn(**logps(d), kind="k2"), [known(d**2 / 2, 0.2402265069591007)])
    assert_close(fn(**logps(d), kind="k3"), [known(1 / 2 - 1 + d, 0.1931471805599453)])
    assert_close(fn(**logps(d)), [d])  # k1 unless told otherwise


def check_expectation(fn):
    """k1 and k3 are unbiased: their mean over the policy is the KL. k2 is not: half of E[d^2]."""
    mean = {k: (P * fn(logps=P.log(), ref_logps=Q.log(), kind=k)).sum() for k in ("k1", "k2", "k3")}
    assert_close(mean["k1"], KL)
    assert_close(
        mean["k2"], known((0.8 * log(1.6) ** 2 + 0.2 * log(0.4) ** 2) / 2, 0.17232023513351263)
    )
    assert_close(mean["k3"], KL)


def check_gradient_of_the_mean(fn):
    """H5: used as a loss, only k2 pulls as the KL does; k1 does not pull at all."""
    logit = torch.tensor(log(4), dtype=torch.float64)  # sigmoid(log 4) = 0.8
    for kind, pull in [
        ("k1", 0.0),
        ("k2", known(0.8 * 0.2 * log(4), 0.22180709777918249)),
        ("k3", 0.8 - 0.5),  # the gradient of the other KL, p - q
    ]:

        def mean(logit, kind=kind):
            policy = torch.stack([logit, -logit]).sigmoid().log()
            return (P * fn(logps=policy, ref_logps=Q.log(), kind=kind)).sum()

        _, grads = gradients(mean, {"logit": logit})
        assert_close(grads["logit"], pull, scale=1.0)


def check_signs(fn):
    tensors = {
        "logps": random(200, low=-5, high=0, seed=1),
        "ref_logps": random(200, low=-5, high=0, seed=2),
    }
    swapped = dict(zip(tensors, reversed(tensors.values()), strict=True))
    assert_close(fn(**swapped, kind="k1"), -fn(**tensors, kind="k1"))
    assert_close(fn(**swapped, kind="k2"), fn(**tensors, kind="k2"))
    assert (fn(**tensors, kind="k2") >= 0).all() and (fn(**tensors, kind="k3") >= 0).all()
    for kind in ("k1", "k2", "k3"):
        assert (fn(logps=P, ref_logps=P, kind=kind) == 0).all()


def check_large(fn):
    """H6: nothing is clamped; a log-ratio of 25 is 25, and still has a gradient."""
    for kind, value, slope in [
        ("k1", 25.0, 1.0),
        ("k2", 312.5, 25.0),
        ("k3", exp(-25) + 24, 1 - exp(-25)),
    ]:
        (out,), grads = gradients(fn, logps(25.0), kind=kind)
        assert_close(out, [value])
        assert_close(grads["logps"], [slope])


def check_reference(fn):
    near = {
        "logps": random(2, 4, low=-6, high=0, seed=1),
        "ref_logps": random(2, 4, low=-6, high=0, seed=2),
    }
    for kind in ("k1", "k2", "k3"):
        agree(fn, kl, near, units=2, kind=kind)
    # |d| from 1e-8 to 20. k3 ~ d^2/2 is a small difference of terms of size d: not strict
    d = column(1e-8, -1e-8, 1e-4, -1e-4, 0.01, -0.01, 20.0, -20.0)
    for kind in ("k1", "k2", "k3"):
        agree(
            fn,
            kl,
            {"logps": d - 1.0, "ref_logps": torch.full_like(d, -1.0)},
            units=1,
            strict=kind != "k3",
            kind=kind,
        )


CHECKS = [
    check_goldens,
    check_expectation,
    check_gradient_of_the_mean,
    check_signs,
    check_large,
    check_reference,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_kl_estimate(check):
    check(kl_estimate)


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind"):
        kl_estimate(**logps(1.0), kind="k4")
