"""Wrong clipped losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.conformance.catalogue.mutant import Right, mutant


def surrogate(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float,
    of: Callable[[Tensor, Tensor], Tensor] = torch.minimum,
) -> Tensor:
    ratio = torch.exp(torch.where(mask, logps - old_logps, 0.0))
    advantages = torch.where(mask, advantages, 0.0)
    return -of(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


@mutant("ppo_policy_loss")
def max_for_min(right: Right, *, clip: float = 0.2, **rest: Any) -> Tensor:
    """The optimistic bound: clips what is lost and lets gains run."""
    return surrogate(clip=clip, of=torch.maximum, **rest)


@mutant("ppo_policy_loss")
def maximised(right: Right, **inputs: Any) -> Tensor:
    """The sign."""
    return -right(**inputs)


@mutant("ppo_policy_loss", bug="H1")
def dual_clip(right: Right, *, advantages: Tensor, mask: Tensor, **rest: Any) -> Tensor:
    """A floor of 3 A for bad tokens: another algorithm under PPO's name."""
    loss = right(advantages=advantages, mask=mask, **rest)
    inside = torch.where(mask, advantages, 0.0)
    return torch.where(inside < 0, torch.minimum(loss, -3 * inside), loss)


@mutant("ppo_policy_loss")
def never_clipped(right: Right, *, clip: float = 0.2, **rest: Any) -> Tensor:
    """The option without an effect: no ratio is too large."""
    return right(clip=float("inf"), **rest)


@mutant("ppo_policy_loss")
def only_clipped(right: Right, *, clip: float = 0.2, **rest: Any) -> Tensor:
    """No minimum: a token that went the wrong way has no gradient back."""
    return surrogate(clip=clip, of=lambda free, held: held, **rest)


@mutant("ppo_policy_loss")
def clipped_above_only(
    right: Right,
    *,
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float = 0.2,
) -> Tensor:
    """clamp(max=1 + clip): bad tokens fall without limit."""
    ratio = torch.exp(torch.where(mask, logps - old_logps, 0.0))
    inside = torch.where(mask, advantages, 0.0)
    return -torch.minimum(ratio * inside, ratio.clamp(max=1 + clip) * inside)


@mutant("ppo_policy_loss")
def log_ratio_clipped(
    right: Right,
    *,
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float = 0.2,
) -> Tensor:
    """±clip on the log-ratio: exp(0.2) is 1.22, exp(-0.2) is 0.82."""
    log_ratio = torch.where(mask, logps - old_logps, 0.0)
    inside = torch.where(mask, advantages, 0.0)
    return -torch.minimum(log_ratio.exp() * inside, log_ratio.clamp(-clip, clip).exp() * inside)


@mutant("ppo_policy_loss")
def ratio_inverted(right: Right, *, logps: Tensor, old_logps: Tensor, **rest: Any) -> Tensor:
    """old / new."""
    return right(logps=old_logps, old_logps=logps, **rest)


@mutant("ppo_policy_loss", bug="H13")
def ratio_of_itself(right: Right, *, logps: Tensor, old_logps: Tensor, **rest: Any) -> Tensor:
    """ "Old" log-probs from the current forward: the ratio is always 1."""
    return right(logps=logps, old_logps=logps.detach() + 0 * old_logps, **rest)


@mutant("ppo_policy_loss")
def overflow_under_the_mask(
    right: Right,
    *,
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float = 0.2,
) -> Tensor:
    """Masked at the end only: forward right, backward 0 x inf."""
    ratio = torch.exp(logps - old_logps)
    held = ratio.clamp(1 - clip, 1 + clip) * advantages
    return torch.where(mask, -torch.minimum(ratio * advantages, held), 0.0)


@mutant("ppo_policy_loss")
def averaged_over_the_row(right: Right, *, mask: Tensor, **rest: Any) -> Tensor:
    """Token means inside: a token of a long response weighs less."""
    return right(mask=mask, **rest) / mask.sum(-1, keepdim=True).clamp(min=1)


@mutant("ppo_value_loss", bug="H2")
def without_half(right: Right, **inputs: Any) -> Tensor:
    """Twice the critic's learning rate."""
    return 2 * right(**inputs)


def squared_errors(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float | Tensor
) -> tuple[Tensor, Tensor]:
    values, old_values, returns = (torch.where(mask, x, 0.0) for x in (values, old_values, returns))
    held = torch.clamp(values, old_values - clip, old_values + clip)
    return (values - returns) ** 2, (held - returns) ** 2


@mutant("ppo_value_loss", bug="H2")
def clipped_only(right: Right, *, clip: float = 0.2, **rest: Any) -> Tensor:
    """0.045 where the rule says 0.125."""
    return 0.5 * squared_errors(**rest, clip=clip)[1]


@mutant("ppo_value_loss")
def min_for_max(right: Right, *, clip: float = 0.2, **rest: Any) -> Tensor:
    """The optimistic error."""
    return 0.5 * torch.minimum(*squared_errors(**rest, clip=clip))


@mutant("ppo_value_loss", bug="H3")
def not_clipped(right: Right, *, clip: float = 0.2, **rest: Any) -> Tensor:
    """The option without an effect."""
    return right(clip=float("inf"), **rest)


@mutant("ppo_value_loss")
def clipped_around_the_target(
    right: Right, *, old_values: Tensor, returns: Tensor, **rest: Any
) -> Tensor:
    """clamp(v, R - clip, R + clip)."""
    return right(old_values=returns, returns=returns, **rest) + 0 * old_values


@mutant("ppo_value_loss")
def clipped_in_proportion(
    right: Right,
    *,
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    clip: float = 0.2,
) -> Tensor:
    """old (1 ± clip): an interval of width 0 around 0."""
    wide = (clip * old_values).abs()
    free, _ = squared_errors(values, old_values, returns, mask, clip)
    _, held = squared_errors(values, old_values, returns, mask, torch.where(mask, wide, 0.0))
    return 0.5 * torch.maximum(free, held)


@mutant("ppo_value_loss")
def targets_detached(right: Right, *, returns: Tensor, **rest: Any) -> Tensor:
    """The target as a constant: right in training, wrong as a function."""
    return right(returns=returns.detach(), **rest)
