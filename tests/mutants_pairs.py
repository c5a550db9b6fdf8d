"""Wrong preference losses (see mutants.py)."""

import torch
from mutants import mutant
from torch.nn.functional import logsigmoid, relu

import losses

# ----------------------------------------------------------------------------------- dpo


@mutant("dpo_loss")
def sign_of_h(right, *, policy_chosen_logps, policy_rejected_logps, **rest):
    """Chosen and rejected exchanged under the policy."""
    return right(
        policy_chosen_logps=policy_rejected_logps, policy_rejected_logps=policy_chosen_logps, **rest
    )


@mutant("dpo_loss")
def reference_swapped(right, *, ref_chosen_logps, ref_rejected_logps, **rest):
    """The reference's two columns exchanged: pulls away from the reference."""
    return right(ref_chosen_logps=ref_rejected_logps, ref_rejected_logps=ref_chosen_logps, **rest)


@mutant("dpo_loss")
def reference_forgotten(right, *, ref_chosen_logps, ref_rejected_logps, **rest):
    """CPO under DPO's name (C10)."""
    return right(
        ref_chosen_logps=0 * ref_chosen_logps, ref_rejected_logps=0 * ref_rejected_logps, **rest
    )


@mutant("dpo_loss")
def reference_detached(right, *, ref_chosen_logps, ref_rejected_logps, **rest):
    """Right in training, where the reference has no graph; wrong as a function."""
    return right(
        ref_chosen_logps=ref_chosen_logps.detach(),
        ref_rejected_logps=ref_rejected_logps.detach(),
        **rest,
    )


@mutant("dpo_loss")
def beta_twice(right, *, beta=0.1, **rest):
    """Rewards that carry beta already, multiplied by it again."""
    return right(beta=beta**2, **rest)


@mutant("dpo_loss")
def beta_outside(right, *, beta=0.1, **rest):
    """beta in front of the loss, not inside it."""
    return beta * right(beta=1.0, **rest)


@mutant("dpo_loss")
def smoothing_ignored(right, *, label_smoothing=0.0, **rest):
    """Accepted and silently dropped, as in TRL 1.16 (C4)."""
    return right(**rest)


@mutant("dpo_loss")
def smoothing_that_cancels(right, *, label_smoothing=0.0, variant="sigmoid", **rest):
    """The note that e log σ(x) + e log σ(-x) = 0, taken at its word."""
    plain = right(variant=variant, **rest)
    return plain if variant in ("ipo", "hinge") else (1 - label_smoothing) * plain


def h_of(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, **_):
    return (policy_chosen_logps - policy_rejected_logps) - (ref_chosen_logps - ref_rejected_logps)


@mutant("dpo_loss")
def robust_unscaled(right, *, variant="sigmoid", label_smoothing=0.0, **rest):
    """robust without its 1 / (1 - 2e): biased by that factor."""
    loss = right(variant=variant, label_smoothing=label_smoothing, **rest)
    return loss * (1 - 2 * label_smoothing) if variant == "robust" else loss


@mutant("dpo_loss")
def ipo_target_doubled(right, *, variant="sigmoid", beta=0.1, **rest):
    """ipo aiming at 1 / beta."""
    if variant != "ipo":
        return right(variant=variant, beta=beta, **rest)
    return (h_of(**rest) - 1 / beta) ** 2


@mutant("dpo_loss")
def ipo_of_rewards(right, *, variant="sigmoid", beta=0.1, **rest):
    """ipo on beta h, as if it were a reward."""
    if variant != "ipo":
        return right(variant=variant, beta=beta, **rest)
    return (beta * h_of(**rest) - 1 / (2 * beta)) ** 2


@mutant("dpo_loss")
def hinge_at_zero(right, *, variant="sigmoid", beta=0.1, **rest):
    """A hinge without a margin is content with any right order."""
    loss = right(variant=variant, beta=beta, **rest)
    return relu(-beta * h_of(**rest)) if variant == "hinge" else loss


@mutant("dpo_loss")
def sigmoid_underflows(right, *, variant="sigmoid", beta=0.1, label_smoothing=0.0, **rest):
    """log(sigmoid(beta h)): -inf from beta h = -745 even in float64."""
    loss = right(variant=variant, beta=beta, label_smoothing=label_smoothing, **rest)
    plain = variant == "sigmoid" and not label_smoothing
    return -(beta * h_of(**rest)).sigmoid().log() if plain else loss


@mutant("dpo_loss")
def clamped(right, *, variant="sigmoid", beta=0.1, label_smoothing=0.0, **rest):
    """beta h clamped "for stability": no gradient for the pairs that are most wrong."""
    loss = right(variant=variant, beta=beta, label_smoothing=label_smoothing, **rest)
    plain = variant == "sigmoid" and not label_smoothing
    return -logsigmoid((beta * h_of(**rest)).clamp(-10, 10)) if plain else loss


@mutant("dpo_loss")
def likelihood_added(right, *, policy_chosen_logps, **rest):
    """DPO plus a little SFT under DPO's name (C8)."""
    return right(policy_chosen_logps=policy_chosen_logps, **rest) - 0.01 * policy_chosen_logps


# ---------------------------------------------------------------------------------- orpo


def orpo(log_odds, chosen, rejected, lam):
    return -chosen - lam * logsigmoid(log_odds(chosen) - log_odds(rejected))


@mutant("orpo_loss")
def naive_log1mexp(right, *, chosen_mean_logps, rejected_mean_logps, lam=0.1):
    """log1p(-exp(a)): -inf at -1e-17, four digits left at -1e-12 (D1)."""
    return orpo(
        lambda a: a - torch.log1p(-torch.exp(a)), chosen_mean_logps, rejected_mean_logps, lam
    )


@mutant("orpo_loss")
def where_sends_nan(right, *, chosen_mean_logps, rejected_mean_logps, lam=0.1):
    """Two good branches under one torch.where: forward right, backward NaN (D2, TRL 1.16)."""

    def log_odds(a):
        near, far = torch.log(-torch.expm1(a)), torch.log1p(-torch.exp(a))
        return a - torch.where(a > -0.6931472, near, far)

    return orpo(log_odds, chosen_mean_logps, rejected_mean_logps, lam)


@mutant("orpo_loss")
def a_little_more_than_one(right, *, chosen_mean_logps, rejected_mean_logps, lam=0.1):
    """log(1.0001 - p): no NaN and no truth (D9)."""
    return orpo(
        lambda a: a - torch.log(1.0001 - torch.exp(a)), chosen_mean_logps, rejected_mean_logps, lam
    )


@mutant("orpo_loss")
def clamped_early(right, *, chosen_mean_logps, rejected_mean_logps, lam=0.1):
    """Kept away from p = 1 by 1e-6: a confident model feels nothing."""
    return orpo(
        lambda a: losses.log_odds(a.clamp(max=-1e-6)), chosen_mean_logps, rejected_mean_logps, lam
    )


@mutant("orpo_loss")
def probabilities_for_odds(right, *, chosen_mean_logps, rejected_mean_logps, lam=0.1):
    """The ratio of probabilities, not of odds."""
    return orpo(lambda a: a, chosen_mean_logps, rejected_mean_logps, lam)


@mutant("orpo_loss")
def odds_inverted(right, *, chosen_mean_logps, rejected_mean_logps, lam=0.1):
    """The penalty's sign: prefers the rejected response."""
    return orpo(lambda a: -losses.log_odds(a), chosen_mean_logps, rejected_mean_logps, lam)


@mutant("orpo_loss")
def lam_on_both(right, *, chosen_mean_logps, rejected_mean_logps, lam=0.1):
    """lam weighs the likelihood too: nothing but a smaller learning rate."""
    return lam * right(chosen_mean_logps, rejected_mean_logps, lam=1.0)


@mutant("orpo_loss")
def no_likelihood(right, *, chosen_mean_logps, rejected_mean_logps, lam=0.1):
    """The odds alone."""
    return right(chosen_mean_logps, rejected_mean_logps, lam=lam) + chosen_mean_logps


@mutant("orpo_loss")
def likelihood_of_rejected(right, *, chosen_mean_logps, rejected_mean_logps, lam=0.1):
    """Supervised on the wrong one."""
    extra = chosen_mean_logps - rejected_mean_logps
    return right(chosen_mean_logps, rejected_mean_logps, lam=lam) + extra


@mutant("orpo_loss")
def cast_down(right, **inputs):
    """The loss in bfloat16: 0.517086 becomes 0.5156 (D6)."""
    return right(**inputs).to(torch.bfloat16)


@mutant("orpo_loss")
def rejected_has_no_gradient(right, *, chosen_mean_logps, rejected_mean_logps, lam=0.1):
    """A detached term."""
    return right(chosen_mean_logps, rejected_mean_logps.detach(), lam=lam)
