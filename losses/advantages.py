"""From rewards and values to advantages: what PPO maximises, before any gradient.

    δ_t = r_t + γ V_{t+1} - V_t          A_t = δ_t + γλ A_{t+1}          R_t = A_t + V_t

    r_t  reward on token t        V_t  the critic's value of the state *before* token t

Schulman et al. 2015, "High-Dimensional Continuous Control Using Generalized Advantage Estimation"
(arXiv 1506.02438), eq. 11-16. KL estimators, which become part of the reward: Schulman 2020,
"Approximating KL Divergence". Whitening with the population variance: OpenAI's
lm-human-preferences.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from .base import check_shapes

KLKind = Literal["k1", "k2", "k3"]


def kl_estimate(logps: Tensor, ref_logps: Tensor, *, kind: KLKind = "k1") -> Tensor:
    """Estimate of KL(π || π_ref) from one sample a position, in nats; un-masked, of any shape.

    With d = log π - log π_ref and samples from π: k1 = d (unbiased, may be negative), k2 = d²/2
    (biased, its gradient is the KL's), k3 = e^-d - 1 + d (unbiased, never negative).

    Raises:
        ValueError: the shapes differ, or the kind is unknown.
    """
    check_shapes(logps=(logps, "..."), ref_logps=(ref_logps, "..."))
    d = logps - ref_logps
    if kind == "k1":
        return d
    if kind == "k2":
        return d**2 / 2
    if kind == "k3":
        return torch.expm1(-d) + d
    raise ValueError(f"unknown kind {kind!r}; one of {', '.join(get_args(KLKind))}")


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    last_values: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Advantages and returns of every token.

    Args:
        rewards: (B, T) reward received on each token.
        values: (B, T) the critic's value of the state before each token.
        mask: (B, T) bool, True on response tokens. The recursion steps over what is masked, so that
            neither padding nor a tool's output in mid-response bootstraps into a real token.
        gamma, lam: discount γ and the GAE parameter λ.
        last_values: (B,) value of the state after the last token, for rows that were cut rather
            than finished; None treats every end as terminal (0).

    Returns:
        (advantages, returns), both (B, T), exactly 0 where the mask is False.

    Raises:
        ValueError: the shapes are not these, or the mask is not bool.
    """
    check_shapes(rewards=(rewards, "B T"), values=(values, "B T"), mask=(mask, "B T"))
    if last_values is not None:
        check_shapes(rewards=(rewards, "B T"), last_values=(last_values, "B"))
    rewards, values = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)
    next_advantage = values.new_zeros(values.shape[0])
    next_value = next_advantage if last_values is None else last_values
    columns = []
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]  # eq. 11 of 1506.02438
        advantage = delta + gamma * lam * next_advantage  # eq. 16, as a recursion
        columns.append(torch.where(mask[:, t], advantage, 0.0))
        next_advantage = torch.where(mask[:, t], advantage, next_advantage)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
    advantages = torch.stack(columns[::-1], dim=1) if columns else torch.zeros_like(values)
    return advantages, torch.where(mask, advantages + values, 0.0)


def masked_whiten(x: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Scale `x` to mean 0 and population variance 1 over all True positions of `mask`.

    Args:
        x, mask: one shape, any; mask is bool.
        shift_mean: False puts the mean back, so that only the scale changes (for rewards).

    Returns:
        (x - mean) / sqrt(var + 1e-8) [+ mean], exactly 0 where the mask is False.

    Raises:
        ValueError: the shapes differ, or the mask is not bool.
    """
    check_shapes(x=(x, "..."), mask=(mask, "..."))
    x, count = torch.where(mask, x, 0.0), mask.sum().clamp(min=1)
    mean = x.sum() / count
    mean = mean + torch.where(mask, x - mean, 0.0).sum() / count  # what rounding took from it
    centred = torch.where(mask, x - mean, 0.0)
    whitened = centred * torch.rsqrt((centred**2).sum() / count + 1e-8)
    return whitened if shift_mean else torch.where(mask, whitened + mean, 0.0)
