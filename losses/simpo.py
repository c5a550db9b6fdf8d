"""SimPO: a preference loss whose reward is the mean log-probability, with no reference model.

    L(θ) = 1/B Σ_pairs  -log σ( β/|y_w| log π_θ(y_w|x)  -  β/|y_l| log π_θ(y_l|x)  -  γ )

    y_w, y_l  chosen and rejected    |y|  number of response tokens, with EOS
    β  scale of the reward           γ  target margin: by how much r(y_w) should exceed r(y_l)

Meng, Xia & Chen 2024, "SimPO: Simple Preference Optimization with a Reference-Free Reward" (arXiv
2405.14734), eq. 6. The reward of a response is r(x, y) = β/|y| log π_θ(y|x) (eq. 4), so that
γ = 0 is DPO with means for sums and without the reference.

γ stands outside β, as in the paper, in TRL (`simpo_gamma`) and in Liger; the authors' code takes
`gamma_beta_ratio` = γ/β. Their β is 2 and more; TRL's default, CPO's 0.1, is far from it.

Not here: label smoothing and the hinge (in the authors' code and in TRL's, from CPO and SLiC; not
in the paper), and an SFT term beside it (`sft_weight` there, `cpo_alpha` in TRL, whose default of 1
makes CPO-SimPO).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from einops import rearrange
from torch import Tensor
from torch.nn.functional import logsigmoid

from .base import Loss, LossOutput, check_shapes, masked_mean, pairs, sum_and_count

if TYPE_CHECKING:
    from data.trees import TreeBatch


@dataclass(frozen=True)
class SimPOConfig:
    beta: float = 2.0
    """Scale of the reward; the paper takes 2 to 2.5, its authors later up to 10."""
    gamma: float = 1.0
    """Target margin between the two rewards; the authors take 0.1 to 0.8 times beta."""

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise ValueError(f"--beta {self.beta} must be above 0 and finite")
        if not 0 <= self.gamma < math.inf:
            raise ValueError(f"--gamma {self.gamma} must not be negative, and finite")


def simpo_loss(
    chosen_mean_logps: Tensor,
    rejected_mean_logps: Tensor,
    *,
    beta: float = 2.0,
    gamma: float = 1.0,
) -> Tensor:
    """SimPO loss of every pair, from log-probabilities in nats averaged over the response.

    Args:
        chosen_mean_logps, rejected_mean_logps: (B,) log π_θ(y|x) / |y| of y_w and y_l.
        beta: scale β of the reward.
        gamma: target margin γ, in units of the reward.

    Returns:
        (B,) un-reduced losses.

    Raises:
        ValueError: the shapes are not (B,).
    """
    check_shapes(
        chosen_mean_logps=(chosen_mean_logps, "B"), rejected_mean_logps=(rejected_mean_logps, "B")
    )
    margin = beta * (chosen_mean_logps - rejected_mean_logps)
    return -logsigmoid(margin - gamma)


def step(logps: Tensor, batch: TreeBatch, config: SimPOConfig) -> LossOutput:
    mean_logps = masked_mean(logps, batch.mask)  # (S,)
    chosen, rejected = rearrange(mean_logps, "(pairs two) -> two pairs", two=2)
    losses = simpo_loss(chosen, rejected, beta=config.beta, gamma=config.gamma)
    chosen_rewards, rejected_rewards = config.beta * chosen, config.beta * rejected  # eq. 4
    return LossOutput(
        {"pairs": losses.sum()},
        {
            "rewards/chosen": sum_and_count(chosen_rewards),
            "rewards/rejected": sum_and_count(rejected_rewards),
            "rewards/margins": sum_and_count(chosen_rewards - rejected_rewards),
            "rewards/accuracies": sum_and_count(chosen_rewards > rejected_rewards),
            "mean_logps/chosen": sum_and_count(chosen),
            "mean_logps/rejected": sum_and_count(rejected),
        },
    )


LOSS = Loss(
    name="simpo",
    config=SimPOConfig,
    step=step,
    units=pairs,
    responses_per_row=2,
    # with beta and gamma, the authors' setting for Llama-3-8B-Base; theirs go from 3e-7 to 1e-6
    learning_rate=6e-7,
)
