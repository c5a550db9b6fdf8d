"""Who checks the checker: dual numbers against mp.diff, and the twins against the anchors."""

import pytest
import reference as ref
from mpmath import mp, mpf
from tolerances import TIGHT

POINTS = {
    "dpo": (ref.dpo, (-10, -12, -11, "-11.5")),
    "dpo_ipo": (lambda *x: ref.dpo(*x, variant="ipo"), (-10, -12, -11, "-11.5")),
    "dpo_robust": (
        lambda *x: ref.dpo(*x, label_smoothing=mpf("0.1"), variant="robust"),
        (-10, -12, -11, "-11.5"),
    ),
    "reward": (lambda *x: ref.reward(*x, center_coef=mpf("0.01")), (1, "0.2", "0.5")),
    "orpo": (ref.orpo, ("-0.5", "-1.5")),
    "simpo": (ref.simpo, ("-0.5", "-1.5")),
    "k3": (lambda *x: ref.kl(*x, kind="k3"), (-2, "-2.3")),
    "policy": (lambda *x: ref.ppo_policy(*x, mask=True), ("-1.1", -1, "0.7")),
    "value": (lambda *x: ref.ppo_value(*x, mask=True), (1, 0, "0.5")),
    "gae": (
        lambda *x: ref.gae(x[:2], x[2:4], [True, True], last_values=x[4])[0],
        (1, 2, "0.3", "0.4", "0.5"),
    ),
    "whiten": (lambda *x: ref.whiten([x], [[True] * 3])[0], (1, 2, 4)),
    "logprobs": (
        lambda *x: ref.token_logprobs(x[:2], [x[2:4], x[4:6]], x[6:], 1, mpf(2)),
        ("0.5", "0.25", 1, 2, -1, "0.125", 3, -2),
    ),
    "entropy": (
        lambda *x: ref.token_entropy(x[:2], [x[2:4], x[4:6]], x[6:], mpf(2)),
        ("0.5", "0.25", 1, 2, -1, "0.125", 3, -2),
    ),
}


@pytest.mark.parametrize("name", POINTS)
def test_dual_numbers_against_differences(name):
    twin, point = POINTS[name]
    point = [mpf(x) for x in point]
    _, grad = ref.value_and_grad(lambda duals: [twin(*duals)], point, [1])
    for i, slope in enumerate(grad):

        def along(x, i=i):
            return ref.dual(twin(*[*point[:i], x, *point[i + 1 :]])).v

        # mp.diff raises the working precision, so half of the digits is an easy demand
        assert abs(mp.diff(along, point[i]) - slope) < mpf(10) ** -25, (name, i)


ANCHORS = {  # computed elsewhere, from the papers, with nothing but the math module
    "dpo": 0.6209570477895321,
    "dpo_ipo": 12.25,
    "dpo_robust": 0.602207047789532,
    "orpo": 0.5170859217146478,
    "simpo": 0.31326168751822286,
    "value": 0.125,
}


@pytest.mark.parametrize("name", ANCHORS)
def test_twins_know_the_anchors(name):
    twin, point = POINTS[name]
    assert float(ref.dual(twin(*map(mpf, point))).v) == pytest.approx(ANCHORS[name], rel=TIGHT)


def test_min_and_max_take_the_gradient_of_the_winner():
    _, grad = ref.value_and_grad(lambda x: [min(x[0], x[1]), max(x[0], x[1])], [1, 2], [3, 5])
    assert grad == [3, 5]
