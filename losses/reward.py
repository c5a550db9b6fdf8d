"""Bradley-Terry reward model: the chosen response scores above the rejected one.

    L(φ) = 1/B Σ_pairs  [ -log σ( r_w - r_l - m )  +  c (r_w + r_l)² ]

    r_w, r_l  scores r_φ(x, y) of the chosen and the rejected response, read at the last real token
    m  margin of the pair      c  centring coefficient

Ouyang et al. 2022 (arXiv 2203.02155), eq. 1, with one comparison a prompt; Bradley & Terry 1952.
Margin: Touvron et al. 2023, "Llama 2" (arXiv 2307.09288), eq. 2. Centring, on the *sum* of the two
scores and not on each: Eisenstein et al. 2023 (arXiv 2312.09244), eq. 2. A Bradley-Terry model
fixes scores only up to a constant for each prompt; centring picks the constant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from einops import rearrange
from torch import Tensor
from torch.nn.functional import logsigmoid

from .base import Loss, LossOutput, check_shapes, pairs, sum_and_count

if TYPE_CHECKING:
    from data.trees import TreeBatch


@dataclass(frozen=True)
class RewardConfig:
    center_coef: float = 0.0
    """Weight of the squared sum of the two scores, which keeps them around 0; 0.01 is usual."""

    def __post_init__(self) -> None:
        if not 0 <= self.center_coef < math.inf:
            raise ValueError(f"--center_coef {self.center_coef} must not be negative, and finite")


def reward_loss(
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    *,
    margin: Tensor | None = None,
    center_coef: float = 0.0,
) -> Tensor:
    """Negative log-likelihood that the chosen response wins, for every pair.

    Args:
        chosen_scores, rejected_scores: (B,) scores r_w and r_l.
        margin: (B,) how far apart the two should be at least; None is 0.
        center_coef: weight c of the centring term.

    Returns:
        (B,) -log σ(r_w - r_l - margin) + center_coef (r_w + r_l)².

    Raises:
        ValueError: the shapes are not these.
    """
    check_shapes(chosen_scores=(chosen_scores, "B"), rejected_scores=(rejected_scores, "B"))
    gap = chosen_scores - rejected_scores
    if margin is not None:
        check_shapes(chosen_scores=(chosen_scores, "B"), margin=(margin, "B"))
        gap = gap - margin
    return -logsigmoid(gap) + center_coef * (chosen_scores + rejected_scores) ** 2


def step(scores: Tensor, batch: TreeBatch, config: RewardConfig) -> LossOutput:
    chosen, rejected = rearrange(scores, "(pairs two) -> two pairs", two=2)
    margin = batch.columns["margin"][0::2].to(scores.dtype)  # of the pair: the same for both
    losses = reward_loss(chosen, rejected, margin=margin, center_coef=config.center_coef)
    return LossOutput(
        {"pairs": losses.sum()},
        {
            "accuracy": sum_and_count(chosen > rejected),
            "margin": sum_and_count(chosen - rejected),
            "mean_reward": sum_and_count(scores),
            "mean_squared_reward": sum_and_count(scores**2),
            "rewards/chosen": sum_and_count(chosen),
            "rewards/rejected": sum_and_count(rejected),
        },
    )


LOSS = Loss(
    name="reward",
    config=RewardConfig,
    step=step,
    units=pairs,
    responses_per_row=2,
    learning_rate=1e-5,  # Llama 2 (arXiv 2307.09288), section 3.2.2, for its smaller models
    task="seq_cls",
    reads=("margin",),
    packing=lambda config: {"include_last_token": True},
)
