"""liger-kernel 0.8.5: the chunked losses, which are plain torch and run on a CPU.

A chunk's loss function takes log-probs, so it is called as the fused layer calls it, one pair a
call; the fused layer itself (hidden states to log-probs) is `token_logprobs`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..peer_code import module, rows, run_block, tokens, versions

if TYPE_CHECKING:
    from torch import Tensor

VERSIONS = versions("liger_kernel==0.8.5", "torch")
PADDING = "padding is multiplied by the mask, so it has to be finite"
CONVENTIONS = {
    "logprobs": "computed in float32 whatever comes in, so float64 has float32's digits",
    "policy/padding-nan": PADDING,
    "policy/padding-overflow": PADDING,
}


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    if temperature != 1.0:
        raise NotImplementedError("the preference losses have no temperature")
    fused = module("liger_kernel.chunked_loss.fused_linear_preference")
    chosen, rejected, *_ = fused.LigerFusedLinearPreferenceBase.chunk_forward(
        hidden[:, None],
        weight,
        targets[:, None],
        bias,
        compute_nll_loss=False,
        average_log_prob=False,
    )
    out: Tensor = module("torch").cat([chosen, rejected])
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
    function = module("liger_kernel.chunked_loss.dpo_loss").LigerFusedLinearDPOFunction

    def loss(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Tensor:
        out: Tensor = function.preference_loss_fn(
            chosen,
            rejected,
            module("torch").zeros(2, 1),
            ref_chosen,
            ref_rejected,
            beta=beta,
            loss_type=variant,
            label_smoothing=label_smoothing,
        )[0]
        return out

    return rows(
        loss, policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps
    )


def orpo_loss(
    chosen_mean_logps: Tensor, rejected_mean_logps: Tensor, *, lam: float = 0.1
) -> Tensor:
    fused = module("liger_kernel.chunked_loss.fused_linear_preference")
    function = module("liger_kernel.chunked_loss.orpo_loss").LigerFusedLinearORPOFunction

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        names: dict[str, Any] = {
            "preference_loss_fn": function.preference_loss_fn,
            "full_target": module("torch").zeros(2, 1),
            "chosen_logps": chosen,
            "rejected_logps": rejected,
            "chosen_nll_loss": -chosen.mean(),
            "alpha": 1.0,
            "beta": lam,
            "loss_kwargs": {},
        }
        last = "loss = alpha * chosen_nll_loss"
        done = run_block(Path(str(fused.__file__)), "preference_loss_outputs = ", last, names)
        out: Tensor = done["loss"]
        return out

    return rows(loss, chosen_mean_logps, rejected_mean_logps)


def kl_estimate(logps: Tensor, ref_logps: Tensor, *, kind: str = "k1") -> Tensor:
    if kind != "k3":
        raise NotImplementedError("has k3 only")
    out: Tensor = module("liger_kernel.chunked_loss.grpo_loss").k3_loss_fn(ref_logps, logps)
    return out


def ppo_policy_loss(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, *, clip: float = 0.2
) -> Tensor:
    """GRPO's clipped surrogate (bnpo: a mean over the tokens), one response of one token a call."""
    function = module("liger_kernel.chunked_loss.grpo_loss").LigerFusedLinearGRPOFunction

    def loss(new: Tensor, old: Tensor, advantage: Tensor, counted: Tensor) -> Tensor:
        out: Tensor = function.ppo_loss_fn(
            new,
            counted,
            advantage[:, 0],
            counted,
            old_per_token_logps=old,
            epsilon_low=clip,
            epsilon_high=clip,
            beta=0.0,
            loss_type="bnpo",
        )[0]
        return out

    return tokens(loss, logps, old_logps, advantages, mask)
