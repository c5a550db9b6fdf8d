"""torchtune 0.6.1: its DPO, RSO (hinge) and PPO losses, log-probs, whitening, and GAE.

`estimate_advantages` whitens what it returns, so its recursion is cut out to be compared alone, and
the lines of the PPO recipe that zero a critic's values go before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from ..peer_code import (
    module,
    right_padded,
    run_block,
    source_of,
    tokens,
    versions,
    zero_padding,
)

if TYPE_CHECKING:
    from torch import Tensor

VERSIONS = versions("torchtune==0.6.1", "torchao", "torch")
CONVENTIONS = {
    "gae": "an episode ends one token after the last, where the recipe keeps the critic's value and"
    " puts the score",
}


def _recipe() -> Path:
    return source_of("recipes", "ppo_full_finetune_single_device.py")


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    logits = module("torch").nn.functional.linear(hidden, weight, bias)
    convert = module("torchtune.rlhf").logits_to_logprobs
    out: Tensor = convert(logits[None], targets[None], temperature)[0]
    return out


def dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    variant: str = "sigmoid",
) -> Tensor:
    losses = module("torchtune.rlhf.loss")
    if variant == "sigmoid":
        loss = losses.DPOLoss(beta=beta, label_smoothing=label_smoothing)
    elif variant == "hinge":
        loss = losses.RSOLoss(gamma=beta)
    else:
        raise NotImplementedError(f"has sigmoid and hinge (RSOLoss), not {variant}")
    out: Tensor = loss(
        policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps
    )[0]
    return out


def kl_estimate(logps: Tensor, ref_logps: Tensor, *, kind: str = "k1") -> Tensor:
    if kind != "k1":
        raise NotImplementedError("has k1 only")
    scores = logps.detach()[..., -1] * 0
    out: Tensor = module("torchtune.rlhf").get_rewards_ppo(scores, logps, ref_logps, 1.0)[1]
    return out


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    last_values: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    if last_values is not None:
        raise NotImplementedError("a truncated response is taken as ended")
    right_padded(mask)
    (rewards,) = zero_padding(mask, rewards)  # minus KL, which is 0 on padding
    count = module("torchtune.training").get_unmasked_sequence_lengths
    recipe = {
        "torch": module("torch"),
        "self": SimpleNamespace(_max_generated_tokens=mask.shape[1]),
        "seq_lens": count(~mask),  # the last token's position
        "response_padding_masks": ~mask,
        "values": values.clone(),
    }
    last = "values[value_padding_masks] = 0.0"
    values = run_block(_recipe(), "value_seq_idxs = ", last, recipe)["values"]
    names = {"torch": module("torch"), "values": values, "rewards": rewards}
    names.update(gamma=gamma, lmbda=lam)
    file = source_of("torchtune", "rlhf/rewards.py")
    done = run_block(file, "last_gae_lam = 0", "returns = ", names)
    return done["advantages"].masked_fill(~mask, 0), done["returns"].masked_fill(~mask, 0)


def masked_whiten(x: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    white: Tensor = module("torchtune.rlhf").whiten(*zero_padding(mask, x), mask, shift_mean)
    return white.masked_fill(~mask, 0)  # as estimate_advantages does after it


def ppo_policy_loss(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, *, clip: float = 0.2
) -> Tensor:
    ppo = module("torchtune.rlhf.loss").PPOLoss(epsilon=clip, value_coeff=0.0)

    def loss(new: Tensor, old: Tensor, advantage: Tensor) -> Tensor:
        zero = new.detach() * 0
        out: Tensor = ppo(old, new, advantage, zero, zero, zero)[0]
        return out

    return tokens(loss, logps, old_logps, advantages, only=mask)


def ppo_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, clip: float = 0.2
) -> Tensor:
    ppo = module("torchtune.rlhf.loss").PPOLoss(value_clip_range=clip, value_coeff=1.0)

    def loss(new: Tensor, old: Tensor, target: Tensor) -> Tensor:
        zero = new.detach() * 0
        out: Tensor = ppo(zero, zero, zero, old, new, target)[0]
        return out

    return tokens(loss, values, old_values, returns, only=mask)


def reduce(
    losses: Tensor, mask: Tensor, *, micro_batches: Sequence[int], unit: str = "token"
) -> Tensor:
    """The PPO recipe's mean a micro-batch, each divided by their number."""
    if unit != "token":
        raise NotImplementedError("averages over tokens only")
    (losses,) = zero_padding(mask, losses)  # log-probs are filled there, advantages are 0
    recipe = SimpleNamespace(_gradient_accumulation_steps=len(micro_batches))
    total = losses.new_zeros(())
    for part, keep in zip(losses.split(micro_batches), mask.split(micro_batches), strict=True):
        loss = module("torchtune.rlhf").masked_mean(part, keep)
        line = "loss /= self._gradient_accumulation_steps"
        total = total + run_block(_recipe(), line, line, {"loss": loss, "self": recipe})["loss"]
    return total
