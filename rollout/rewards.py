"""From the score of a response to the reward of each of its tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from losses.advantages import KLKind, kl_estimate
from losses.ppo import PPOConfig
from rollout.state import RolloutState


def shape_scores(
    scores: Tensor, finished: Tensor, config: PPOConfig, state: RolloutState
) -> Tensor:
    """The rest of step 2: normalise by what has been seen, clip, penalise a missing end."""
    if config.score_norm:
        deviation = math.sqrt(state.score_m2 / max(state.scores_seen, 1.0))
        scores = (scores - state.score_mean) / max(deviation, 1e-8)
    if config.score_clip is not None:
        scores = scores.clamp(-config.score_clip, config.score_clip)
    return scores - config.missing_eos_penalty * (~finished).to(scores.dtype)


def update_moments(state: RolloutState, count: float, mean: float, m2: float) -> None:
    """Fold (count, mean, sum of squared deviations) of new scores into the running moments."""
    total = state.scores_seen + count
    delta = mean - state.score_mean
    state.score_m2 += m2 + delta**2 * state.scores_seen * count / total
    state.score_mean += delta * count / total
    state.scores_seen = total


def token_rewards(
    scores: Tensor,
    logps: Tensor,
    ref_logps: Tensor,
    mask: Tensor,
    *,
    kl_coef: float,
    estimator: KLKind,
) -> Tensor:
    """Step 4: (S, T) reward of every token: -β KL, and the score on the last real one (N+ 1.4)."""
    kl = torch.where(mask, kl_estimate(logps, ref_logps, kind=estimator), 0.0)
    last = mask.sum(-1, keepdim=True) - 1
    return (-kl_coef * kl).scatter_add(1, last, scores[:, None].to(kl.dtype))
