"""Alignment losses, written by hand: pure functions of log-probabilities, scores and values.

The functions take tensors, return one un-reduced value a pair `(B,)` or a token `(B, T)`, and work
in any float dtype. `LOSSES` is what the command line and the loop know: a name and a file each.
"""

from . import dpo, orpo, ppo, reward, sft, simpo
from .advantages import gae, kl_estimate, masked_whiten
from .base import Loss, LossOutput, masked_mean, masked_sum
from .dpo import dpo_loss
from .logprobs import token_logprobs
from .orpo import log_odds, orpo_loss
from .ppo import ppo_policy_loss, ppo_value_loss
from .reward import reward_loss
from .sft import sft_loss
from .simpo import simpo_loss

MODULES = (sft, reward, dpo, orpo, simpo, ppo)
LOSSES: dict[str, Loss] = {module.LOSS.name: module.LOSS for module in MODULES}

__all__ = [
    "LOSSES",
    "Loss",
    "LossOutput",
    "dpo_loss",
    "gae",
    "kl_estimate",
    "log_odds",
    "masked_mean",
    "masked_sum",
    "masked_whiten",
    "orpo_loss",
    "ppo_policy_loss",
    "ppo_value_loss",
    "reward_loss",
    "sft_loss",
    "simpo_loss",
    "token_logprobs",
]
