"""SFT: maximum likelihood on the response.

    L(θ) = - 1/N  Σ_rows Σ_t  log π_θ(y_t | x, y_<t)          N = response tokens of the whole step

    x  prompt        y  response, its end token included        π_θ  the policy

Ouyang et al. 2022, "Training language models to follow instructions with human feedback"
(arXiv 2203.02155), section 3.5, step 1. The mean is over *tokens* of the optimizer step, however it
is cut into micro-batches and ranks; a long response weighs more than a short one.

Not here: loss on the prompt, packing across rows (the token trees do it without a label), NEFTune.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .base import Loss, LossOutput, check_shapes, tokens

if TYPE_CHECKING:
    from data.trees import TreeBatch


@dataclass(frozen=True)
class SFTConfig:
    """SFT has no knobs of its own."""


def sft_loss(logps: Tensor, mask: Tensor) -> Tensor:
    """Negative log-likelihood of every response token, in nats.

    Args:
        logps: (B, T) log-probabilities of the tokens.
        mask: (B, T) bool, True on response tokens.

    Returns:
        (B, T) -logps, exactly 0 where the mask is False.

    Raises:
        ValueError: the shapes are not these, or the mask is not bool.
    """
    check_shapes(logps=(logps, "B T"), mask=(mask, "B T"))
    return torch.where(mask, -logps, 0.0)


def step(logps: Tensor, batch: TreeBatch, config: SFTConfig) -> LossOutput:
    losses = sft_loss(logps, batch.mask)  # (S, T)
    return LossOutput({"tokens": losses.sum()}, {})


LOSS = Loss(
    name="sft",
    config=SFTConfig,
    step=step,
    units=tokens,
    responses_per_row=1,
    learning_rate=2e-5,  # TRL's SFTConfig; Zephyr-7B (arXiv 2310.16944)
)
