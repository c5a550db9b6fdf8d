"""Wrong KL estimates, advantages and whitenings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.conformance.catalogue.mutant import Pair, Right, mutant

# ------------------------------------------------------------------------------------ kl


@mutant("kl_estimate", bug="H4")
def log_ratio_flipped(
    right: Right, *, logps: Tensor, ref_logps: Tensor, kind: str = "k1"
) -> Tensor:
    """ref - policy: k1 rewards drifting away, k3 estimates without its expectation."""
    return right(ref_logps, logps, kind=kind)


@mutant("kl_estimate")
def k2_without_half(right: Right, *, kind: str = "k1", **rest: Any) -> Tensor:
    """Twice the gradient of the KL."""
    return right(kind=kind, **rest) * (2 if kind == "k2" else 1)


@mutant("kl_estimate")
def k3_reversed(right: Right, *, logps: Tensor, ref_logps: Tensor, kind: str = "k1") -> Tensor:
    """e^d - 1 - d: never negative as well, but not the KL's estimate."""
    d = logps - ref_logps
    return d.exp() - 1 - d if kind == "k3" else right(logps, ref_logps, kind=kind)


@mutant("kl_estimate")
def k3_cancels(right: Right, *, logps: Tensor, ref_logps: Tensor, kind: str = "k1") -> Tensor:
    """e^-d - 1 + d as written: at d = 1e-8, where k3 is 5e-17, a multiple of 2e-16."""
    d = logps - ref_logps
    return torch.exp(-d) - 1 + d if kind == "k3" else right(logps, ref_logps, kind=kind)


@mutant("kl_estimate", bug="I4")
def always_k1(right: Right, *, kind: str = "k1", **rest: Any) -> Tensor:
    """The option without an effect."""
    return right(**rest)


@mutant("kl_estimate")
def absolute(right: Right, *, kind: str = "k1", **rest: Any) -> Tensor:
    """|d|: never negative, and biased."""
    return right(kind=kind, **rest).abs()


@mutant("kl_estimate", bug="H6")
def saturating(right: Right, *, kind: str = "k1", **rest: Any) -> Tensor:
    """Clamped at ±10: a runaway policy costs no more, and has no gradient back."""
    return right(kind=kind, **rest).clamp(-10, 10)


@mutant("kl_estimate")
def policy_detached(right: Right, *, logps: Tensor, **rest: Any) -> Tensor:
    """Nothing to train."""
    return right(logps=logps.detach(), **rest)


# ----------------------------------------------------------------------------------- gae


def recursion(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float,
    decay: float,
    last_values: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The textbook loop; what stands outside the mask has to be cleaned before."""
    following = torch.zeros_like(values[:, 0]) if last_values is None else last_values
    advantage = torch.zeros_like(following)
    columns: list[Tensor] = []
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * following - values[:, t]
        advantage, following = delta + decay * advantage, values[:, t]
        columns.insert(0, advantage)
    advantages = torch.where(mask, torch.stack(columns, 1), 0.0)
    return advantages, torch.where(mask, advantages + values, 0.0)


@mutant("gae", bug="G3")
def padding_bootstraps(
    right: Pair,
    *,
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
    last_values: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What the critic says at padding flows into the response."""
    return recursion(rewards, values, mask, gamma, gamma * lam, last_values)


@mutant("gae", bug="G6")
def gaps_are_steps(
    right: Pair,
    *,
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
    last_values: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Padding is zeroed, so it ends well; a tool's answer in mid-response is a state of value 0,
    and the bootstrap value waits behind the padding."""
    rewards, values = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)
    return recursion(rewards, values, mask, gamma, gamma * lam, last_values)


@mutant("gae")
def gamma_missing_in_decay(
    right: Pair, *, gamma: float = 1.0, lam: float = 0.95, **rest: Any
) -> tuple[Tensor, Tensor]:
    """lam alone carries the advantage back; gamma is in delta only."""
    return right(gamma=gamma, lam=lam / gamma if gamma else lam, **rest)


@mutant("gae")
def lam_ignored(right: Pair, *, lam: float = 0.95, **rest: Any) -> tuple[Tensor, Tensor]:
    """lam = 1 whatever was asked for: Monte-Carlo returns."""
    return right(lam=1.0, **rest)


@mutant("gae")
def gamma_ignored(right: Pair, *, gamma: float = 1.0, **rest: Any) -> tuple[Tensor, Tensor]:
    """No discount."""
    return right(**rest)


@mutant("gae", bug="G5")
def bootstrap_ignored(
    right: Pair, *, last_values: Tensor | None = None, **rest: Any
) -> tuple[Tensor, Tensor]:
    """A row cut at the length limit counts as finished."""
    return right(**rest)


@mutant("gae")
def bootstrap_everywhere(
    right: Pair, *, values: Tensor, last_values: Tensor | None = None, **rest: Any
) -> tuple[Tensor, Tensor]:
    """A finished row continues with its own last value."""
    return right(
        values=values, last_values=values[:, -1] if last_values is None else last_values, **rest
    )


@mutant("gae", bug="G13")
def returns_of_the_next_step(
    right: Pair, *, rewards: Tensor, mask: Tensor, **rest: Any
) -> tuple[Tensor, Tensor]:
    """The target appended before its reward was added: G of t+1 for V of t."""
    advantages, returns = right(rewards=rewards, mask=mask, **rest)
    return advantages, torch.where(mask, returns - rewards, 0.0)


@mutant("gae")
def returns_are_advantages(right: Pair, **inputs: Any) -> tuple[Tensor, Tensor]:
    """V not added back."""
    advantages, _ = right(**inputs)
    return advantages, advantages


@mutant("gae")
def returns_outside_the_mask(right: Pair, *, values: Tensor, **rest: Any) -> tuple[Tensor, Tensor]:
    """advantages + values, padding included: the critic is trained on its own noise."""
    advantages, _ = right(values=values, **rest)
    return advantages, advantages + values


@mutant("gae")
def values_not_subtracted(
    right: Pair, *, rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, **rest: Any
) -> tuple[Tensor, Tensor]:
    """Rewards to go, no baseline."""
    advantages, returns = right(rewards=rewards, values=values, mask=mask, gamma=gamma, **rest)
    return returns, returns


@mutant("gae")
def always_single(
    right: Pair, *, rewards: Tensor, values: Tensor, **rest: Any
) -> tuple[Tensor, Tensor]:
    """.float() inside, "for stability": seven digits, whatever came in."""
    return right(rewards=rewards.float(), values=values.float(), **rest)


@mutant("gae")
def graph_cut(right: Pair, **inputs: Any) -> tuple[Tensor, Tensor]:
    """Detached inside: right in training, wrong as a function."""
    return tuple(out.detach() + 0 * inputs["rewards"] for out in right(**inputs))


# -------------------------------------------------------------------------------- whiten


@mutant("masked_whiten", bug="G7")
def mean_added_back(right: Right, *, x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """The meaning of shift_mean inverted, as in torchtune: scaled, never centred."""
    return right(x, mask, shift_mean=not shift_mean)


@mutant("masked_whiten", bug="G9")
def bessel(right: Right, *, x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """n - 1: the sample variance."""
    n, mean = mask.sum().clamp(min=2), x[mask].sum() / mask.sum().clamp(min=1)
    shrink = torch.sqrt((n - 1) / n).to(x.dtype)
    white = right(x, mask) * shrink
    return white if shift_mean else torch.where(mask, white + mean, 0.0)


@mutant("masked_whiten", bug="G15")
def padding_in_the_moments(
    right: Right, *, x: Tensor, mask: Tensor, shift_mean: bool = True
) -> Tensor:
    """Moments over the rectangle."""
    inside = torch.where(mask, x, 0.0)
    mean, variance = inside.mean(), inside.var(correction=0)
    white = (inside - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(mask, white if shift_mean else white + mean, 0.0)


@mutant("masked_whiten", bug="G12")
def padding_moves(right: Right, *, x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Not masked again: padding becomes -mean / sd."""
    inside, n = torch.where(mask, x, 0.0), mask.sum().clamp(min=1)
    mean = inside.sum() / n
    variance = torch.where(mask, (inside - mean) ** 2, 0.0).sum() / n
    white = (inside - mean) * torch.rsqrt(variance + 1e-8)
    return white if shift_mean else white + mean


@mutant("masked_whiten", bug="G11")
def row_by_row(right: Right, *, x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Each response its own moments: a row's advantage over the others is erased."""
    rows = zip(x.split(1), mask.split(1), strict=True)
    return torch.cat([right(a, m, shift_mean=shift_mean) for a, m in rows])


@mutant("masked_whiten")
def eps_outside_the_root(
    right: Right, *, x: Tensor, mask: Tensor, shift_mean: bool = True
) -> Tensor:
    """sd + 1e-8 for sqrt(var + 1e-8): 1e-4 apart where all values are equal."""
    inside, n = torch.where(mask, x, 0.0), mask.sum().clamp(min=1)
    mean = inside.sum() / n
    centred = torch.where(mask, inside - mean, 0.0)
    white = centred / (((centred**2).sum() / n).sqrt() + 1e-8)
    return white if shift_mean else torch.where(mask, white + mean, 0.0)


@mutant("masked_whiten")
def moments_detached(right: Right, *, x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Mean and deviation as constants: another gradient."""
    inside, n = torch.where(mask, x, 0.0), mask.sum().clamp(min=1)
    mean = inside.detach().sum() / n
    variance = torch.where(mask, inside.detach() - mean, 0.0).square().sum() / n
    white = (inside - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(mask, white if shift_mean else white + mean, 0.0)


@mutant("masked_whiten")
def difference_of_squares(
    right: Right, *, x: Tensor, mask: Tensor, shift_mean: bool = True
) -> Tensor:
    """E[x²] - E[x]²: no digits left where the mean is large."""
    inside, n = torch.where(mask, x, 0.0), mask.sum().clamp(min=1)
    mean = inside.sum() / n
    variance = (inside**2).sum() / n - mean**2
    white = torch.where(mask, (inside - mean) * torch.rsqrt(variance + 1e-8), 0.0)
    return white if shift_mean else torch.where(mask, white + mean, 0.0)
