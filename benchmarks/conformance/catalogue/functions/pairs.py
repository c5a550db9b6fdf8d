"""Wrong preference losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

import losses
from benchmarks.conformance.catalogue.mutant import Right, mutant

# ----------------------------------------------------------------------------------- dpo


@mutant("dpo_loss")
def sign_of_h(
    right: Right, *, policy_chosen_logps: Tensor, policy_rejected_logps: Tensor, **rest: Any
) -> Tensor:
    """Chosen and rejected exchanged under the policy."""
    return right(
        policy_chosen_logps=policy_rejected_logps, policy_rejected_logps=policy_chosen_logps, **rest
    )


@mutant("dpo_loss")
def reference_swapped(
    right: Right, *, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor, **rest: Any
) -> Tensor:
    """The reference's two columns exchanged: pulls away from the reference."""
    return right(ref_chosen_logps=ref_rejected_logps, ref_rejected_logps=ref_chosen_logps, **rest)


@mutant("dpo_loss", bug="C10")
def reference_forgotten(
    right: Right, *, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor, **rest: Any
) -> Tensor:
    """CPO under DPO's name."""
    return right(
        ref_chosen_logps=0 * ref_chosen_logps, ref_rejected_logps=0 * ref_rejected_logps, **rest
    )


@mutant("dpo_loss")
def reference_detached(
    right: Right, *, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor, **rest: Any
) -> Tensor:
    """Right in training, where the reference has no graph; wrong as a function."""
    return right(
        ref_chosen_logps=ref_chosen_logps.detach(),
        ref_rejected_logps=ref_rejected_logps.detach(),
        **rest,
    )


@mutant("dpo_loss")
def beta_twice(right: Right, *, beta: float = 0.1, **rest: Any) -> Tensor:
    """Rewards that carry beta already, multiplied by it again."""
    return right(beta=beta**2, **rest)


@mutant("dpo_loss")
def beta_outside(right: Right, *, beta: float = 0.1, **rest: Any) -> Tensor:
    """beta in front of the loss, not inside it."""
    return beta * right(beta=1.0, **rest)


@mutant("dpo_loss", bug="C4")
def smoothing_ignored(right: Right, *, label_smoothing: float = 0.0, **rest: Any) -> Tensor:
    """Accepted and silently dropped, as in TRL 1.16."""
    return right(**rest)


@mutant("dpo_loss")
def smoothing_that_cancels(
    right: Right, *, label_smoothing: float = 0.0, variant: str = "sigmoid", **rest: Any
) -> Tensor:
    """The note that e log σ(x) + e log σ(-x) = 0, taken at its word."""
    plain = right(variant=variant, **rest)
    return plain if variant in ("ipo", "hinge") else (1 - label_smoothing) * plain


def h_of(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    **_: Any,
) -> Tensor:
    return (policy_chosen_logps - policy_rejected_logps) - (ref_chosen_logps - ref_rejected_logps)


@mutant("dpo_loss")
def robust_unscaled(
    right: Right, *, variant: str = "sigmoid", label_smoothing: float = 0.0, **rest: Any
) -> Tensor:
    """robust without its 1 / (1 - 2e): biased by that factor."""
    loss = right(variant=variant, label_smoothing=label_smoothing, **rest)
    return loss * (1 - 2 * label_smoothing) if variant == "robust" else loss


@mutant("dpo_loss")
def ipo_target_doubled(
    right: Right, *, variant: str = "sigmoid", beta: float = 0.1, **rest: Any
) -> Tensor:
    """ipo aiming at 1 / beta."""
    if variant != "ipo":
        return right(variant=variant, beta=beta, **rest)
    return (h_of(**rest) - 1 / beta) ** 2


@mutant("dpo_loss")
def ipo_of_rewards(
    right: Right, *, variant: str = "sigmoid", beta: float = 0.1, **rest: Any
) -> Tensor:
    """ipo on beta h, as if it were a reward."""
    if variant != "ipo":
        return right(variant=variant, beta=beta, **rest)
    return (beta * h_of(**rest) - 1 / (2 * beta)) ** 2


@mutant("dpo_loss")
def hinge_at_zero(
    right: Right, *, variant: str = "sigmoid", beta: float = 0.1, **rest: Any
) -> Tensor:
    """A hinge without a margin is content with any right order."""
    loss = right(variant=variant, beta=beta, **rest)
    return relu(-beta * h_of(**rest)) if variant == "hinge" else loss


@mutant("dpo_loss")
def sigmoid_underflows(
    right: Right,
    *,
    variant: str = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    **rest: Any,
) -> Tensor:
    """log(sigmoid(beta h)): -inf from beta h = -745 even in float64."""
    loss = right(variant=variant, beta=beta, label_smoothing=label_smoothing, **rest)
    plain = variant == "sigmoid" and not label_smoothing
    return -(beta * h_of(**rest)).sigmoid().log() if plain else loss


@mutant("dpo_loss")
def clamped(
    right: Right,
    *,
    variant: str = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    **rest: Any,
) -> Tensor:
    """beta h clamped "for stability": no gradient for the pairs that are most wrong."""
    loss = right(variant=variant, beta=beta, label_smoothing=label_smoothing, **rest)
    plain = variant == "sigmoid" and not label_smoothing
    return -logsigmoid((beta * h_of(**rest)).clamp(-10, 10)) if plain else loss


@mutant("dpo_loss", bug="C8")
def likelihood_added(right: Right, *, policy_chosen_logps: Tensor, **rest: Any) -> Tensor:
    """DPO plus a little SFT under DPO's name."""
    return right(policy_chosen_logps=policy_chosen_logps, **rest) - 0.01 * policy_chosen_logps


# ---------------------------------------------------------------------------------- orpo


def orpo(
    log_odds: Callable[[Tensor], Tensor], chosen: Tensor, rejected: Tensor, lam: float
) -> Tensor:
    return -chosen - lam * logsigmoid(log_odds(chosen) - log_odds(rejected))


@mutant("orpo_loss", bug="D1")
def naive_log1mexp(
    right: Right, *, chosen_mean_logps: Tensor, rejected_mean_logps: Tensor, lam: float = 0.1
) -> Tensor:
    """log1p(-exp(a)): -inf at -1e-17, four digits left at -1e-12."""
    return orpo(
        lambda a: a - torch.log1p(-torch.exp(a)), chosen_mean_logps, rejected_mean_logps, lam
    )


@mutant("orpo_loss", bug="D2")
def where_sends_nan(
    right: Right, *, chosen_mean_logps: Tensor, rejected_mean_logps: Tensor, lam: float = 0.1
) -> Tensor:
    """Two good branches under one torch.where: forward right, backward NaN, as in TRL 1.16."""

    def log_odds(a: Tensor) -> Tensor:
        near, far = torch.log(-torch.expm1(a)), torch.log1p(-torch.exp(a))
        return a - torch.where(a > -0.6931472, near, far)

    return orpo(log_odds, chosen_mean_logps, rejected_mean_logps, lam)


@mutant("orpo_loss", bug="D9")
def a_little_more_than_one(
    right: Right, *, chosen_mean_logps: Tensor, rejected_mean_logps: Tensor, lam: float = 0.1
) -> Tensor:
    """log(1.0001 - p): no NaN and no truth."""
    return orpo(
        lambda a: a - torch.log(1.0001 - torch.exp(a)), chosen_mean_logps, rejected_mean_logps, lam
    )


@mutant("orpo_loss")
def clamped_early(
    right: Right, *, chosen_mean_logps: Tensor, rejected_mean_logps: Tensor, lam: float = 0.1
) -> Tensor:
    """Kept away from p = 1 by 1e-6: a confident model feels nothing."""
    return orpo(
        lambda a: losses.log_odds(a.clamp(max=-1e-6)), chosen_mean_logps, rejected_mean_logps, lam
    )


@mutant("orpo_loss")
def probabilities_for_odds(
    right: Right, *, chosen_mean_logps: Tensor, rejected_mean_logps: Tensor, lam: float = 0.1
) -> Tensor:
    """The ratio of probabilities, not of odds."""
    return orpo(lambda a: a, chosen_mean_logps, rejected_mean_logps, lam)


@mutant("orpo_loss")
def odds_inverted(
    right: Right, *, chosen_mean_logps: Tensor, rejected_mean_logps: Tensor, lam: float = 0.1
) -> Tensor:
    """The penalty's sign: prefers the rejected response."""
    return orpo(lambda a: -losses.log_odds(a), chosen_mean_logps, rejected_mean_logps, lam)


@mutant("orpo_loss")
def lam_on_both(
    right: Right, *, chosen_mean_logps: Tensor, rejected_mean_logps: Tensor, lam: float = 0.1
) -> Tensor:
    """lam weighs the likelihood too: nothing but a smaller learning rate."""
    return lam * right(chosen_mean_logps, rejected_mean_logps, lam=1.0)


@mutant("orpo_loss")
def no_likelihood(
    right: Right, *, chosen_mean_logps: Tensor, rejected_mean_logps: Tensor, lam: float = 0.1
) -> Tensor:
    """The odds alone."""
    return right(chosen_mean_logps, rejected_mean_logps, lam=lam) + chosen_mean_logps


@mutant("orpo_loss")
def likelihood_of_rejected(
    right: Right, *, chosen_mean_logps: Tensor, rejected_mean_logps: Tensor, lam: float = 0.1
) -> Tensor:
    """Supervised on the wrong one."""
    extra = chosen_mean_logps - rejected_mean_logps
    return right(chosen_mean_logps, rejected_mean_logps, lam=lam) + extra


@mutant("orpo_loss", bug="D6")
def cast_down(right: Right, **inputs: Any) -> Tensor:
    """The loss in bfloat16: 0.517086 becomes 0.5156."""
    return right(**inputs).to(torch.bfloat16)


@mutant("orpo_loss")
def rejected_has_no_gradient(
    right: Right, *, chosen_mean_logps: Tensor, rejected_mean_logps: Tensor, lam: float = 0.1
) -> Tensor:
    """A detached term."""
    return right(chosen_mean_logps, rejected_mean_logps.detach(), lam=lam)
