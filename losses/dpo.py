"""DPO: a classification loss on preference pairs whose optimum is the KL-constrained RLHF policy.

    h = [log π_θ(y_w|x) - log π_θ(y_l|x)] - [log π_ref(y_w|x) - log π_ref(y_l|x)]

    sigmoid   -(1-ε) log σ(βh) - ε log σ(-βh)               ε = 0: DPO eq. 7; ε > 0: cDPO
    robust    [-(1-ε) log σ(βh) + ε log σ(-βh)] / (1-2ε)    unbiased when labels flip with rate ε
    ipo       (h - 1/(2β))²                                 identity preference optimisation
    hinge     max(0, 1 - βh)                                SLiC-style

    x  prompt    y_w, y_l  chosen and rejected    log π(y|x)  *sum* over response tokens, with EOS

Rafailov et al. 2023, "Direct Preference Optimization" (arXiv 2305.18290), eq. 7. cDPO: Mitchell
2023, "A note on DPO with noisy preferences", eq. 3. robust: Chowdhury et al. 2024 (arXiv
2403.00409), eq. 12. ipo: Azar et al. 2023 (arXiv 2310.12036), eq. 17, with its τ written β. hinge:
Zhao et al. 2023 (arXiv 2305.10425), eq. 1, on the log-ratio (as in Liu et al. 2023, arXiv
2309.06657).

The implicit reward of a response is r̂ = β [log π_θ(y|x) - log π_ref(y|x)] (their eq. 5).

Not here: a resident reference model (its log-probs come with the batch, computed before the first
update), reference-free DPO, other f-divergences. TRL averages ipo's log-probs over the response;
here that is `--logp_reduction mean`, which also gives length-normalised DPO.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

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
    pairs,
    sum_and_count,
)

if TYPE_CHECKING:
    from data.trees import TreeBatch

Variant = Literal["sigmoid", "robust", "ipo", "hinge"]


@dataclass(frozen=True)
class DPOConfig:
    beta: float = 0.1
    """Strength of the pull towards the reference; for ipo the paper's τ."""
    label_smoothing: float = 0.0
    """Assumed share ε of flipped labels, below 0.5; read by sigmoid (then cDPO) and robust."""
    variant: Variant = "sigmoid"
    """Which function of the log-ratio difference is minimised."""
    logp_reduction: Literal["sum", "mean"] = "sum"
    """Log-probability of a response: sum over its tokens (the papers), or mean (TRL's ipo)."""
    ref_model: str | None = None
    """Directory or hub id of the reference model (default: the model as it is before training)."""

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise ValueError(f"--beta {self.beta} must be above 0 and finite")
        check_smoothing(self.label_smoothing, self.variant)


def check_smoothing(label_smoothing: float, variant: Variant) -> None:
    """Raise ValueError where the smoothing would be ignored, or divide by 0."""
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing {label_smoothing} must be in [0, 0.5)")
    if label_smoothing and variant not in ("sigmoid", "robust"):
        raise ValueError(f"label_smoothing has no meaning with variant {variant}")


def dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    variant: Variant = "sigmoid",
) -> Tensor:
    """DPO loss of every pair, from log-probabilities in nats summed over the response.

    Args:
        policy_chosen_logps, policy_rejected_logps: (B,) log π_θ(y_w|x) and log π_θ(y_l|x).
        ref_chosen_logps, ref_rejected_logps: (B,) the same under the reference.
        beta, label_smoothing, variant: as in the formulas at the top of this file.

    Returns:
        (B,) un-reduced losses.

    Raises:
        ValueError: the shapes are not (B,), the variant is unknown, or it has no use for the
            smoothing.
    """
    check_shapes(
        policy_chosen_logps=(policy_chosen_logps, "B"),
        policy_rejected_logps=(policy_rejected_logps, "B"),
        ref_chosen_logps=(ref_chosen_logps, "B"),
        ref_rejected_logps=(ref_rejected_logps, "B"),
    )
    policy_logratio = policy_chosen_logps - policy_rejected_logps
    ref_logratio = ref_chosen_logps - ref_rejected_logps
    h = policy_logratio - ref_logratio
    eps = label_smoothing
    check_smoothing(eps, variant)

    if variant == "sigmoid":  # DPO eq. 7 at eps = 0, cDPO eq. 3
        return -(1 - eps) * logsigmoid(beta * h) - eps * logsigmoid(-beta * h)
    if variant == "robust":  # Chowdhury et al. eq. 12
        clean, flipped = -logsigmoid(beta * h), -logsigmoid(-beta * h)
        return ((1 - eps) * clean - eps * flipped) / (1 - 2 * eps)
    if variant == "ipo":  # Azar et al. eq. 17
        return (h - 1 / (2 * beta)) ** 2
    if variant == "hinge":
        return torch.relu(1 - beta * h)
    raise ValueError(f"unknown variant {variant!r}; one of {', '.join(get_args(Variant))}")


def step(logps: Tensor, batch: TreeBatch, config: DPOConfig) -> LossOutput:
    reduce = masked_sum if config.logp_reduction == "sum" else masked_mean
    seq_logps = reduce(logps, batch.mask)  # (S,)
    ref_logps = batch.columns["ref_seq_logps"].to(seq_logps.dtype)  # so that a mean rounds alike
    if config.logp_reduction == "mean":
        ref_logps = ref_logps / batch.mask.sum(-1).clamp(min=1)
    policy_chosen, policy_rejected = rearrange(seq_logps, "(pairs two) -> two pairs", two=2)
    ref_chosen, ref_rejected = rearrange(ref_logps, "(pairs two) -> two pairs", two=2)

    losses = dpo_loss(
        policy_chosen,
        policy_rejected,
        ref_chosen,
        ref_rejected,
        beta=config.beta,
        label_smoothing=config.label_smoothing,
        variant=config.variant,
    )
    chosen_rewards = config.beta * (policy_chosen - ref_chosen)  # eq. 5, without the partition term
    rejected_rewards = config.beta * (policy_rejected - ref_rejected)
    return LossOutput(
        {"pairs": losses.sum()},
        {
            "rewards/chosen": sum_and_count(chosen_rewards),
            "rewards/rejected": sum_and_count(rejected_rewards),
            "rewards/margins": sum_and_count(chosen_rewards - rejected_rewards),
            "rewards/accuracies": sum_and_count(chosen_rewards > rejected_rewards),
            "logps/chosen": sum_and_count(policy_chosen),
            "logps/rejected": sum_and_count(policy_rejected),
        },
    )


def expected_initial_metrics(config: DPOConfig) -> dict[str, float]:
    """While policy and reference are one, h is 0: ln 2 for the sigmoid, and no margin."""
    if config.ref_model is not None:
        return {}
    zero = torch.zeros(1, dtype=torch.float64)
    loss = dpo_loss(
        *(zero,) * 4,
        beta=config.beta,
        label_smoothing=config.label_smoothing,
        variant=config.variant,
    )
    return {"loss": loss.item(), "rewards/margins": 0.0}


LOSS = Loss(
    name="dpo",
    config=DPOConfig,
    step=step,
    units=pairs,
    responses_per_row=2,
    learning_rate=1e-6,  # TRL's DPOConfig; the paper's appendix B
    reads=("ref_seq_logps",),
    needs=lambda config: frozenset({"reference"}),
    expected_initial_metrics=expected_initial_metrics,
)
