"""ORPO: likelihood of the chosen response and an odds-ratio penalty, with no reference model.

    L(θ) = 1/B Σ_pairs  [ -log p_w  -  λ log σ( log odds(p_w) - log odds(p_l) ) ]

    p = exp( 1/|y| Σ_t log π_θ(y_t | x, y_<t) )      log odds(p) = log p - log(1 - p)

Hong, Lee & Thorne 2024, "ORPO: Monolithic Preference Optimization without Reference Model"
(arXiv 2403.07691), eq. 3 (p), 4 (odds), 6 and 7 (the loss). The paper's λ is TRL's and
LLaMA-Factory's `beta`.

Everything turns on log(1 - p) near p = 1, where a confident model lives: log(1 - exp(a)) loses all
digits there, and `torch.where` over a good and a bad branch still sends NaN backward through the
bad one (TRL 1.16: NaN gradient for -6e-8 < a < 0). See `log_odds`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from losses.base import check_same_shape


def log_odds(logp: Tensor) -> Tensor:
    """log p - log(1 - p) from log p <= 0, of any shape; exact in value and gradient up to p = 1.

    At p = 1, where the odds are infinite, log p is taken as minus the smallest normal number: the
    value is finite (708 in float64, 87 in float32) and the gradient 0.
    """
    a = logp.clamp(max=-torch.finfo(logp.dtype).tiny)
    near_one = a > -math.log(2)
    # Each branch of the second `where` is fed only what it can take, because the branch that is not
    # chosen still runs backward, and 0 x inf there would be NaN.
    log1mexp_near = torch.log(-torch.expm1(torch.where(near_one, a, -1.0)))
    log1mexp_far = torch.log1p(-torch.exp(torch.where(near_one, -1.0, a)))
    return a - torch.where(near_one, log1mexp_near, log1mexp_far)


def orpo_loss(
    chosen_mean_logps: Tensor, rejected_mean_logps: Tensor, *, lam: float = 0.1
) -> Tensor:
    """ORPO loss of every pair, from log-probabilities in nats averaged over the response.

    Args:
        chosen_mean_logps, rejected_mean_logps: (B,) log p_w and log p_l, at most 0.
        lam: weight λ of the odds-ratio term.

    Returns:
        (B,) un-reduced losses.

    Raises:
        ValueError: the shapes differ.
    """
    check_same_shape(chosen_mean_logps=chosen_mean_logps, rejected_mean_logps=rejected_mean_logps)
    log_odds_ratio = log_odds(chosen_mean_logps) - log_odds(rejected_mean_logps)
    return -chosen_mean_logps - lam * logsigmoid(log_odds_ratio)
