"""The losses of one pair or one token, as the papers print them.

Each function takes `Dual` numbers and options and gives one: arithmetic.py does the derivatives.
No code is shared with `losses/` or with tests/reference.py.
"""

from __future__ import annotations

from .arithmetic import (
    Dual,
    clamp,
    exactly,
    exp,
    expm1,
    given,
    larger,
    log1mexp,
    logsigmoid,
    plus,
    reciprocal,
    smaller,
)

ONE, TWO, HALF = exactly(1), exactly(2), exactly(0.5)


def sft(logps: Dual) -> Dual:
    """Ouyang et al. 2022 (2203.02155), section 3.5: the negative log-likelihood."""
    return -logps


def reward(
    chosen_scores: Dual,
    rejected_scores: Dual,
    margin: Dual | None = None,
    *,
    center_coef: float = 0.0,
) -> Dual:
    """2203.02155 eq. 1; margin 2307.09288 eq. 2; centring 2312.09244 eq. 2."""
    gap = plus(chosen_scores, -rejected_scores, *([] if margin is None else [-margin]))
    both = chosen_scores + rejected_scores
    return -logsigmoid(gap) + given(center_coef) * (both * both)


def dpo(
    policy_chosen_logps: Dual,
    policy_rejected_logps: Dual,
    ref_chosen_logps: Dual,
    ref_rejected_logps: Dual,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    variant: str = "sigmoid",
) -> Dual:
    """2305.18290 eq. 7; cDPO eq. 3; robust 2403.00409 eq. 12; ipo 2310.12036 eq. 17."""
    h = plus(policy_chosen_logps, -ref_chosen_logps, -policy_rejected_logps, ref_rejected_logps)
    b, e = given(beta), given(label_smoothing)
    clean, flipped = -logsigmoid(b * h), -logsigmoid(-(b * h))
    if variant == "sigmoid":
        return (ONE - e) * clean + e * flipped if label_smoothing else clean
    if variant == "robust":
        return ((ONE - e) * clean - e * flipped) * reciprocal(ONE - TWO * e)
    if variant == "ipo":
        off = h - reciprocal(TWO * b)
        return off * off
    if variant == "hinge":
        return larger(exactly(0), ONE - b * h)
    raise ValueError(variant)


def log_odds(a: Dual) -> Dual:
    """2403.07691 eq. 4, of log p."""
    return a - log1mexp(a)


def orpo(chosen_mean_logps: Dual, rejected_mean_logps: Dual, *, lam: float = 0.1) -> Dual:
    """2403.07691 eq. 6 and 7."""
    ratio = log_odds(chosen_mean_logps) - log_odds(rejected_mean_logps)
    return -chosen_mean_logps - given(lam) * logsigmoid(ratio)


def simpo(
    chosen_mean_logps: Dual, rejected_mean_logps: Dual, *, beta: float = 2.0, gamma: float = 1.0
) -> Dual:
    """2405.14734 eq. 6."""
    b = given(beta)
    return -logsigmoid(plus(b * chosen_mean_logps, -(b * rejected_mean_logps), -given(gamma)))


def kl(logps: Dual, ref_logps: Dual, *, kind: str = "k1") -> Dual:
    """Schulman 2020, "Approximating KL Divergence", with the samples from π."""
    d = logps - ref_logps
    if kind == "k1":
        return d
    if kind == "k2":
        return HALF * (d * d)
    if kind == "k3":
        return expm1(-d) + d
    raise ValueError(kind)


def policy(logps: Dual, old_logps: Dual, advantages: Dual, *, clip: float = 0.2) -> Dual:
    """1707.06347 eq. 7, negated."""
    ratio = exp(logps - old_logps)
    held = clamp(ratio, ONE - given(clip), ONE + given(clip))
    free_gain = ratio * advantages
    held_gain = free_gain if held is ratio else held * advantages
    return -smaller(free_gain, held_gain)


def value(values: Dual, old_values: Dual, returns: Dual, *, clip: float = 0.2) -> Dual:
    """OpenAI baselines' ppo2, with its 1/2; 1707.06347 eq. 9 has the square without the clip."""
    held = clamp(values, old_values - given(clip), old_values + given(clip))
    free_off, held_off = values - returns, held - returns
    free = free_off * free_off
    return HALF * (free if held is values else larger(free, held_off * held_off))
