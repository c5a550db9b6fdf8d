"""PPO-clip, for responses as trajectories of tokens.

    ratio_t = π_θ(y_t | x, y_<t) / π_old(y_t | x, y_<t)

    policy   -min( ratio_t A_t,  clip(ratio_t, 1-c, 1+c) A_t )
    value    ½ max( (V_θ - R)²,  (clip(V_θ, V_old-c, V_old+c) - R)² )
    L(θ)     mean over response tokens of   policy + c_v value [ - c_e entropy + β k2(π_θ, π_ref) ]

    A_t, R_t  advantage and return of token t (losses/advantages.py), fixed since the rollout

Schulman et al. 2017, "Proximal Policy Optimization Algorithms" (arXiv 1707.06347), eq. 7 and 9. The
value clip is OpenAI baselines' (not in the paper). For language models: Ouyang et al. 2022 (arXiv
2203.02155), eq. 2, and Huang et al. 2024, "The N+ Implementation Details of RLHF with PPO" (arXiv
2403.17031), N+ below. What happens before the gradient stands in rollout/experience.py.

Not here: dual clip (verl's default), a value head on the policy's own hidden states.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from .advantages import kl_estimate
from .base import ActorCriticOutput, Loss, LossOutput, Need, check_shapes, sum_and_count, tokens
from .sampling_config import SamplingConfig

if TYPE_CHECKING:
    from data.trees import TreeBatch


@dataclass(frozen=True)
class PPOConfig(SamplingConfig):
    reward: str | None = None
    """A reward model's directory or hub id, or module:function (default: pocket's exact grader)."""
    prompts: str | None = None
    """Prompts to sample for: a .jsonl with `prompt`, or a PIQA directory (default: --data's)."""
    ref_model: str | None = None
    """Directory or hub id of the reference (default: the model as it is before training)."""
    rollout_size: int = 64
    """Responses per rollout, over all processes; --batch_size of them make an optimizer step."""
    ppo_epochs: int = 4
    """Passes over each rollout (N+: 4)."""
    kl_coef: float = 0.05
    """Weight of the KL to the reference in every token's reward (InstructGPT's β; N+: 0.05)."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Estimator of that KL (Schulman 2020)."""
    kl_target: float | None = None
    """Steer --kl_coef so that the KL per response stays near this (Ziegler et al. 2019, 2.2)."""
    kl_horizon: int = 10000
    """Responses over which that controller reacts."""
    kl_loss_coef: float = 0.0
    """Weight of the KL as a term of the loss instead, by k2, whose gradient is the KL's."""
    score_clip: float | None = None
    """Clip scores to plus or minus this, after --score_norm."""
    score_norm: bool = False
    """Divide scores by their running standard deviation, after taking off their running mean."""
    missing_eos_penalty: float = 0.0
    """Taken off the score of a response that no end or stop token ended (N+: 1)."""
    truncation: Literal["terminal", "bootstrap"] = "terminal"
    """What follows a cut response: nothing, or what the critic expects."""
    whiten_rewards: bool = False
    """Scale rewards to variance 1, keeping their mean (OpenAI 2019)."""
    whiten_advantages: bool = True
    """Scale advantages to mean 0 and variance 1, over the whole rollout on all processes."""
    gamma: float = 1.0
    """Discount γ."""
    lam: float = 0.95
    """GAE's λ."""
    clip: float = 0.2
    """How far the ratio may go from 1 and still gain."""
    value_clip: float = 0.2
    """How far a value may go from its old one and still gain."""
    value_coef: float = 0.1
    """Weight of the value loss (N+: 0.1)."""
    entropy_coef: float = 0.0
    """Weight of an entropy bonus (none in InstructGPT)."""
    critic_learning_rate: float | None = None
    """Peak learning rate of the critic (default: --learning_rate)."""
    critic_warmup: int = 0
    """Rollouts in which only the critic learns."""
    target_kl: float | None = None
    """Leave a rollout once policy/approxkl_avg is above this."""

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = ("rollout_size", "ppo_epochs", "kl_horizon", "critic_learning_rate")
        weights = ("kl_coef", "kl_loss_coef", "value_coef", "entropy_coef", "missing_eos_penalty")
        for name in (*sizes, "clip", "value_clip", "kl_target", "score_clip", "target_kl"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"--{name} {getattr(self, name)} must be above 0 and finite")
        for name in (*weights, "critic_warmup"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"--{name} {getattr(self, name)} must not be negative, and finite")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} {getattr(self, name)} must be between 0 and 1")
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError("--kl_target needs a --kl_coef above 0 to start from")

    @property
    def bootstraps(self) -> bool:
        """The value after a cut response is needed, so its last token must be computed."""
        return self.truncation == "bootstrap"

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef > 0 or self.kl_loss_coef > 0


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
        ValueError: the shapes are not (B, T), or the mask is not bool.
    """
    check_shapes(
        logps=(logps, "B T"),
        old_logps=(old_logps, "B T"),
        advantages=(advantages, "B T"),
        mask=(mask, "B T"),
    )
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
        ValueError: the shapes are not (B, T), or the mask is not bool.
    """
    check_shapes(
        values=(values, "B T"),
        old_values=(old_values, "B T"),
        returns=(returns, "B T"),
        mask=(mask, "B T"),
    )
    values, old_values, returns = (torch.where(mask, x, 0.0) for x in (values, old_values, returns))
    clipped = torch.clamp(values, old_values - clip, old_values + clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)


def step(outputs: ActorCriticOutput, batch: TreeBatch, config: PPOConfig) -> LossOutput:
    logps, values, _, entropies = outputs
    mask, columns = batch.mask, batch.columns
    old_logps, old_values = columns["old_logps"], columns["old_values"]
    policy_losses = ppo_policy_loss(logps, old_logps, columns["advantages"], mask, clip=config.clip)
    value_losses = ppo_value_loss(
        values, old_values, columns["returns"], mask, clip=config.value_clip
    )
    kl = torch.where(mask, kl_estimate(logps, columns["ref_logps"], kind="k2"), 0.0)
    of_policy = policy_losses + config.kl_loss_coef * kl - config.entropy_coef * entropies
    losses = columns["policy_weight"][:, None] * of_policy + config.value_coef * value_losses

    log_ratio = torch.where(mask, logps - old_logps, 0.0).detach()
    ratio = log_ratio.exp()
    clipped = (ratio - 1).abs() > config.clip
    value_clipped = (values - old_values).abs() > config.value_clip
    return LossOutput(
        {"tokens": losses.sum()},
        {
            "loss/policy_avg": sum_and_count(policy_losses, mask),
            "loss/value_avg": sum_and_count(value_losses, mask),
            "policy/approxkl_avg": sum_and_count(0.5 * log_ratio**2, mask),
            "policy/clipfrac_avg": sum_and_count(clipped, mask),
            "val/clipfrac_avg": sum_and_count(value_clipped, mask),
            "val/ratio": sum_and_count(ratio, mask),
            "val/ratio_minus_1_squared": sum_and_count((ratio - 1) ** 2, mask),
        }
        | ({"policy/entropy_avg": sum_and_count(entropies, mask)} if config.entropy_coef else {}),
    )


def needs(config: PPOConfig) -> frozenset[Need]:
    """Sampled responses and a critic; a reference where a KL to it is asked for."""
    always: frozenset[Need] = frozenset({"rollouts", "critic"})
    return always | {"reference"} if config.needs_reference else always


def expected_initial_metrics(config: PPOConfig) -> dict[str, float]:
    """While policy and reference are one, the KL between them is 0."""
    return {"kl": 0.0} if config.needs_reference and config.ref_model is None else {}


LOSS = Loss(
    name="ppo",
    config=PPOConfig,
    step=step,
    units=tokens,
    responses_per_row=1,
    learning_rate=3e-6,  # N+ (2403.17031), table 5
    # What a rollout fixes about its responses (rollout/experience.py): (S, T), but for the last,
    # (S,), which is 0 while only the critic learns.
    reads=("old_logps", "old_values", "advantages", "returns", "ref_logps", "policy_weight"),
    needs=needs,
    packing=lambda config: {"include_last_token": config.bootstraps},
    expected_initial_metrics=expected_initial_metrics,
)
