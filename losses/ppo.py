"""PPO-clip, for responses as trajectories of tokens.

    ratio_t = π_θ(y_t | x, y_<t) / π_old(y_t | x, y_<t)

    policy   -min( ratio_t A_t,  clip(ratio_t, 1-c, 1+c) A_t )
    value    ½ max( (V_θ - R)²,  (clip(V_θ, V_old-c, V_old+c) - R)² )

    A_t, R_t  advantage and return of token t (losses/advantages.py), fixed since the rollout

Schulman et al. 2017, "Proximal Policy Optimization Algorithms" (arXiv 1707.06347), eq. 7. The
value clip is OpenAI baselines' (not in the paper). For language models: Ouyang et al. 2022 (arXiv
2203.02155), eq. 2.

Not here: dual clip (verl's default), a value head on the policy's own hidden states.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from losses.base import check_same_shape


def ppo_policy_loss(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, *, clip: float = 0.2
) -> Tensor:
    """Clipped surrogate of every token, eq. 7 of the PPO paper with its sign turned: minimise it.

    Args:
        logps, old_logps: (B, T) log-probabilities now and when the response was sampled, in nats.
        advantages: (B, T).
        mask: (B, T) bool, True on response tokens.
        clip: c, how far the ratio may go from 1 and still gain.

    Returns:
        (B, T), exactly 0 where the mask is False.

    Raises:
        ValueError: the shapes differ.
    """
    check_same_shape(logps=logps, old_logps=old_logps, advantages=advantages, mask=mask)
    # Masked before exp: what padding holds could overflow, and its gradient would be 0 x inf. A
    # real token's could too, so the ratio stops just below the largest number (e^87 in float32).
    log_ratio = torch.where(mask, logps - old_logps, 0.0)
    ratio = torch.exp(log_ratio.clamp(max=math.log(torch.finfo(log_ratio.dtype).max) - 1))
    advantages = torch.where(mask, advantages, 0.0)
    unclipped = ratio * advantages
    clipped = ratio.clamp(1 - clip, 1 + clip) * advantages
    return torch.where(mask, -torch.minimum(unclipped, clipped), 0.0)


def ppo_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, clip: float = 0.2
) -> Tensor:
    """Clipped squared error of every value, ½ included (OpenAI baselines' `vf_loss`).

    Args:
        values, old_values: (B, T) the critic's values now and at the rollout.
        returns: (B, T) targets R = A + V_old.
        mask: (B, T) bool, True on response tokens.
        clip: how far a value may move from its old one and still gain.

    Returns:
        (B, T), exactly 0 where the mask is False.

    Raises:
        ValueError: the shapes differ.
    """
    check_same_shape(values=values, old_values=old_values, returns=returns, mask=mask)
    values, old_values, returns = (torch.where(mask, x, 0.0) for x in (values, old_values, returns))
    clipped = torch.clamp(values, old_values - clip, old_values + clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)
