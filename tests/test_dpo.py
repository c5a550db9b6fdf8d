"""dpo_loss: four variants of one function of h, how much more the policy prefers the chosen
response than the reference does."""

from math import exp, log

import pytest
import torch
from compare import agree, column, gradients, known, random
from reference import dpo
from tolerances import assert_close

from losses import dpo_loss

NAMES = "policy_chosen_logps", "policy_rejected_logps", "ref_chosen_logps", "ref_rejected_logps"
VARIANTS = [
    {},
    {"label_smoothing": 0.1},
    {"variant": "robust", "label_smoothing": 0.1},
    {"variant": "ipo"},
    {"variant": "hinge"},
]


def pairs(*columns):
    return dict(zip(NAMES, (column(*c) for c in columns), strict=True))


# h = (-10 + 12) - (-11 + 11.5) = 1.5, so beta h = 0.15
ANCHOR = pairs([-10.0], [-12.0], [-11.0], [-11.5])


def with_h(*hs):
    """Pairs of which only the chosen log-prob under the policy differs from the rest."""
    zeros = [0.0] * len(hs)
    return pairs(hs, zeros, zeros, zeros)


def check_goldens(fn):
    wins, loses = log(1 + exp(-0.15)), log(1 + exp(0.15))  # -logsigmoid(±beta h)
    for options, formula, decimal in [
        ({}, wins, 0.6209570477895321),
        ({"label_smoothing": 0.1}, 0.9 * wins + 0.1 * loses, 0.6359570477895321),
        (
            {"label_smoothing": 0.1, "variant": "robust"},
            (0.9 * wins - 0.1 * loses) / 0.8,
            0.602207047789532,
        ),
        ({"variant": "hinge"}, 1 - 0.15, 0.85),
        ({"variant": "ipo"}, (1.5 - 1 / 0.2) ** 2, 12.25),
        ({"beta": 0.2}, log(1 + exp(-0.3)), 0.5543552444685271),
    ]:
        assert_close(fn(**ANCHOR, **{"beta": 0.1, **options}), [known(formula, decimal)])


def check_gradient(fn):
    """All four log-probs get the same slope, -beta σ(-beta h), with the signs of h."""
    _, grads = gradients(fn, ANCHOR, beta=0.1)
    slope = known(-0.1 / (1 + exp(0.15)), -0.04625701546562505)
    for name, sign in zip(NAMES, (1, -1, -1, 1), strict=True):
        assert_close(grads[name], [sign * slope])


def check_policy_is_reference(fn):
    """C1, C10: ln 2 before the first update, for any log-probs and any beta."""
    chosen, rejected = random(5, low=-300, high=0, seed=1), random(5, low=-300, high=0, seed=2)
    same = dict(zip(NAMES, (chosen, rejected, chosen, rejected), strict=True))
    for beta in (0.01, 0.1, 5.0):
        assert_close(fn(**same, beta=beta), [known(log(2), 0.6931471805599453)] * 5)
        assert_close(fn(**same, beta=beta, label_smoothing=0.3), [log(2)] * 5)
        assert_close(fn(**same, beta=beta, label_smoothing=0.3, variant="robust"), [log(2)] * 5)
        assert_close(fn(**same, beta=beta, variant="hinge"), [1.0] * 5)
        assert_close(fn(**same, beta=beta, variant="ipo"), [1 / (2 * beta) ** 2] * 5)


def check_only_differences_matter(fn):
    """A constant on both log-probs of one model (the prompt's, say) cancels. Exact in binary."""
    for options in VARIANTS:
        policy = ANCHOR | {n: ANCHOR[n] + 8.0 for n in NAMES[:2]}
        reference = ANCHOR | {n: ANCHOR[n] - 16.0 for n in NAMES[2:]}
        for moved in (policy, reference):
            assert_close(fn(**moved, **options), fn(**ANCHOR, **options))


def check_robust_is_unbiased(fn):
    """Flip the labels with probability e: the mean of the robust loss is the clean loss."""
    flipped = dict(zip(NAMES, (ANCHOR[NAMES[i]] for i in (1, 0, 3, 2)), strict=True))
    for e in (0.05, 0.25, 0.4):
        options = {"label_smoothing": e, "variant": "robust"}
        noisy = (1 - e) * fn(**ANCHOR, **options) + e * fn(**flipped, **options)
        assert_close(noisy, fn(**ANCHOR))
        # cDPO is the other way round: the clean loss under flipped labels
        conservative = (1 - e) * fn(**ANCHOR) + e * fn(**flipped)
        assert_close(fn(**ANCHOR, label_smoothing=e), conservative)


def check_ipo_minimum(fn):
    """ipo wants h = 1/(2 beta) and not more: nothing to gain on either side."""
    beta = 0.25
    (loss,), grads = gradients(fn, with_h(1.0, 2.0, 3.0), beta=beta, variant="ipo")
    assert_close(loss, [1.0, 0.0, 1.0])
    assert_close(grads["policy_chosen_logps"], [-2.0, 0.0, 2 * 2.0])  # weights 1, -1/2, 2


def check_hinge(fn):
    """Flat at 0 once beta h exceeds 1 (not 0), a straight line of slope -beta before."""
    (loss,), grads = gradients(fn, with_h(-4.0, 3.0, 5.0), beta=0.25, variant="hinge")
    assert_close(loss, [2.0, 0.25, 0.0])
    assert_close(grads["policy_chosen_logps"], [-0.25, 0.125, 0.0])


def check_far_apart(fn):
    """|beta h| up to 1e3: linear on the wrong side, exp(-beta h) on the right one."""
    (loss,), grads = gradients(fn, with_h(-1e4, -1e3, 1e3), beta=0.1)
    assert_close(loss, [1e3, 100.0, exp(-100)])
    assert_close(grads["policy_chosen_logps"], [-0.1, 0.05, -0.2 * exp(-100)])


def check_reference(fn):
    near = dict(zip(NAMES, (random(5, low=-40, high=-1, seed=s) for s in range(4)), strict=True))
    # beta = 0.5: |beta h| of 1e-6 ... 1e3
    far = with_h(-2e3, -200.0, -2.0, -2e-6, 2e-6, 1.0, 200.0, 2e3)
    for options in VARIANTS:
        agree(fn, dpo, near, units=1, beta=0.1, **options)
        agree(fn, dpo, far, units=1, beta=0.5, **options)


CHECKS = [
    check_goldens,
    check_gradient,
    check_policy_is_reference,
    check_only_differences_matter,
    check_robust_is_unbiased,
    check_ipo_minimum,
    check_hinge,
    check_far_apart,
    check_reference,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_dpo_loss(check):
    check(dpo_loss)


def test_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="variant"):
        dpo_loss(**ANCHOR, variant="sigmiod")


def test_smoothing_of_nothing_changes_nothing():
    assert torch.equal(dpo_loss(**ANCHOR), dpo_loss(**ANCHOR, variant="robust"))


@pytest.mark.parametrize("variant", ["ipo", "hinge"])
def test_smoothing_without_meaning_is_refused(variant):
    """C4: an option that does nothing must not be accepted."""
    with pytest.raises(ValueError, match="label_smoothing"):
        dpo_loss(**ANCHOR, variant=variant, label_smoothing=0.1)
