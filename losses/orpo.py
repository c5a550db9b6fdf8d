"""ORPO: likelihood of the chosen response and an odds-ratio penalty, with no reference model.

    L(θ) = 1/B Σ_pairs  [ -log p_w  -  λ log σ( log odds(p_w) - log odds(p_l) ) ]
                           NLL         odds-ratio term

    p = exp( 1/|y| Σ_t log π_θ(y_t | x, y_<t) )      log odds(p) = log p - log(1 - p)

Hong, Lee & Thorne 2024, "ORPO: Monolithic Preference Optimization without Reference Model"
(arXiv 2403.07691), eq. 3 (p), 4 (odds), 6 and 7 (the loss). The paper's λ is TRL's and
LLaMA-Factory's `beta`.

Published code disagrees about the NLL. Here, by default, it is the paper's -log p_w, a mean over
the response for each pair. `--nll_scope full` takes prompt and response (the paper's repository,
TRL); `--nll_reduction token` is one mean over all tokens of the step (TRL, per micro-batch there).

Everything turns on log(1 - p) near p = 1, where a confident model lives: log(1 - exp(a)) loses all
digits there, and `torch.where` over a good and a bad branch still sends NaN backward through the
bad one (TRL 1.16: NaN gradient for -3e-8 < a < 0). See `log_odds`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import logsigmoid

from .base import (
    Loss,
    LossOutput,
    check_shapes,
    masked_mean,
    masked_sum,
    sum_and_count,
)

if TYPE_CHECKING:
    from data.trees import TreeBatch


@dataclass(frozen=True)
class ORPOConfig:
    lam: float = 0.1
    """Weight λ of the odds-ratio term (TRL calls it beta)."""
    nll_scope: Literal["response", "full"] = "response"
    """Tokens of the likelihood term: the chosen response, or the prompt too (TRL)."""
    nll_reduction: Literal["pair", "token"] = "pair"
    """Its mean: over each pair and then over pairs (the paper), or over all tokens (TRL)."""

    def __post_init__(self) -> None:
        if not 0 <= self.lam < math.inf:
            raise ValueError(f"--lam {self.lam} must not be negative, and finite")


def log_odds(logp: Tensor) -> Tensor:
    """log p - log(1 - p) from log p <= 0, of any shape; exact in value and gradient up to p = 1.

    At p = 1, where the odds are infinite, log p is taken as minus the smallest normal number: the
    value is finite (708 in float64, 87 in float32) and the gradient 0.
    """
    a = logp.clamp(max=-torch.finfo(logp.dtype).tiny)
    near_one = a > -math.log(2)
    log1mexp_near = torch.log(-torch.expm1(a))
    # The branch that is not chosen still runs backward. At p = 1 this one's slope is infinite, and
    # 0 x inf would be NaN, so it is fed only what it can take; the other's is finite everywhere.
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
        ValueError: the shapes are not (B,).
    """
    return -chosen_mean_logps + lam * odds_ratio_loss(chosen_mean_logps, rejected_mean_logps)


def odds_ratio_loss(chosen_mean_logps: Tensor, rejected_mean_logps: Tensor) -> Tensor:
    """(B,) -log σ(log odds(p_w) - log odds(p_l)): eq. 7, without λ. ValueError on other shapes."""
    check_shapes(
        chosen_mean_logps=(chosen_mean_logps, "B"), rejected_mean_logps=(rejected_mean_logps, "B")
    )
    return -logsigmoid(log_odds(chosen_mean_logps) - log_odds(rejected_mean_logps))


def step(logps: Tensor, batch: TreeBatch, config: ORPOConfig) -> LossOutput:
    mean_logps = masked_mean(logps, batch.mask)  # (S,)
    chosen, rejected = rearrange(mean_logps, "(pairs two) -> two pairs", two=2)
    odds_ratio_losses = odds_ratio_loss(chosen, rejected)

    nll_mask = likelihood_mask(batch, config)  # (B, T)
    nll_tokens = masked_sum(-logps[0::2], nll_mask)
    nll_pairs = nll_tokens / nll_mask.sum(-1).clamp(min=1)
    if config.nll_reduction == "pair":
        totals = {"pairs": (nll_pairs + config.lam * odds_ratio_losses).sum()}
        nll = sum_and_count(nll_pairs)
    else:
        totals = {"pairs": config.lam * odds_ratio_losses.sum(), "tokens": nll_tokens.sum()}
        nll = (sum_and_count(nll_tokens)[0], nll_mask.sum())
    return LossOutput(
        totals,
        {
            "nll_loss": nll,
            "odds_ratio_loss": sum_and_count(odds_ratio_losses),
            "log_odds_ratio": sum_and_count(log_odds(chosen) - log_odds(rejected)),
            "rewards/chosen": sum_and_count(config.lam * chosen),
            "rewards/rejected": sum_and_count(config.lam * rejected),
            "rewards/margins": sum_and_count(config.lam * (chosen - rejected)),
            "rewards/accuracies": sum_and_count(chosen > rejected),
            "mean_logps/chosen": sum_and_count(chosen),
            "mean_logps/rejected": sum_and_count(rejected),
        },
    )


def likelihood_mask(batch: TreeBatch, config: ORPOConfig) -> Tensor:
    """(B, T) tokens of the chosen sequences that the likelihood term counts."""
    mask = batch.mask[0::2]
    return mask | batch.prompt_mask[0::2] if config.nll_scope == "full" else mask


def units(batch: TreeBatch, config: ORPOConfig) -> dict[str, int]:
    """Pairs; and where the likelihood term is a mean over tokens, those tokens."""
    count = {"pairs": batch.num_examples}
    if config.nll_reduction == "token":
        lengths = batch.response_lengths[0::2]
        if config.nll_scope == "full":
            lengths += batch.prompt_lengths[0::2]
        count["tokens"] = sum(lengths)
    return count


LOSS = Loss(
    name="orpo",
    config=ORPOConfig,
    step=step,
    units=units,
    responses_per_row=2,
    learning_rate=8e-6,  # TRL's examples/scripts/orpo.py
    packing=lambda config: {"prompts": config.nll_scope == "full"},
)
