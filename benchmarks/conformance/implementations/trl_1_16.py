"""TRL 1.16.0: its DPOTrainer, ORPOTrainer, RewardTrainer, SFTTrainer, fused head, GRPO lines.

The trainers' loss methods are called on a stand-in that holds the options, with a model that
returns the log-probs, scores or hidden states of the case: one token a response, one row a call.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..peer_code import Loose, module, rows, run_block, tokens, versions

if TYPE_CHECKING:
    from torch import Tensor

VERSIONS = versions("trl==1.16.0", "transformers", "torch")
FLOAT32 = "computed in float32 whatever comes in, so float64 has float32's digits"
PADDING = "padding is multiplied by the mask, so it has to be finite"
CONVENTIONS = {
    "logprobs": FLOAT32,
    **{f"orpo/{name}": FLOAT32 for name in "ordinary swapped equal lam half hopeless".split()},
    **{f"orpo/{name}": FLOAT32 for name in "both-hopeless random-0 random-1 random-2".split()},
    **{
        f"orpo/certain-{side}-{n}": FLOAT32 for side in ("chosen", "rejected") for n in (10, 20, 24)
    },
    "policy/padding-nan": PADDING,
    "policy/padding-overflow": PADDING,
}


def _trainer(**given: Any) -> Loose:
    model = SimpleNamespace(training=True)
    return Loose(
        model=model,
        aux_loss_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
        **given,
    )


def _ones(*shape: int) -> Tensor:
    ones: Tensor = module("torch").ones(shape, dtype=module("torch").long)
    return ones


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    chunk_size: int = 32768,
) -> Tensor:
    head = module("trl.kernels").ChunkedLogProbFunction
    out: Tensor = head.apply(
        hidden, weight, bias, targets, temperature, chunk_size, None, 1.0, ("log_probs",)
    )[0]
    return out


def _sft(logps: Tensor, mask: Tensor, items: int | None) -> Tensor:
    """SFTTrainer.compute_loss of one micro-batch (B, T) in a step of `items` tokens."""
    args = SimpleNamespace(loss_type="nll", average_tokens_across_devices=False)
    trainer = _trainer(args=args, compute_loss_func=None, label_smoother=None)
    kept = logps.masked_fill(~mask, 0)  # as the fused head returns them
    zero = kept.detach() * 0
    output = SimpleNamespace(log_probs=kept, label_mask=mask, entropy=zero, is_top1=zero.bool())
    compute = module("trl.trainer.sft_trainer").SFTTrainer.compute_loss
    inputs = {"attention_mask": _ones(1, 2)}
    loss: Tensor = compute(trainer, lambda **_: output, inputs, num_items_in_batch=items)
    return loss


def sft_loss(logps: Tensor, mask: Tensor) -> Tensor:
    return tokens(lambda logp, keep: _sft(logp, keep, None), logps, mask)


def reward_loss(
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    *,
    margin: Tensor | None = None,
    center_coef: float = 0.0,
) -> Tensor:
    compute = module("trl.trainer.reward_trainer").RewardTrainer.compute_loss
    trainer = _trainer(args=SimpleNamespace(center_rewards_coefficient=center_coef or None))

    def loss(chosen: Tensor, rejected: Tensor, row_margin: Tensor | None) -> Tensor:
        scores = module("torch").cat([chosen, rejected])[:, None]
        inputs: dict[str, Any] = {"attention_mask": _ones(2, 2)}
        if row_margin is not None:
            inputs["margin"] = row_margin
        value: Tensor = compute(trainer, lambda **inputs: SimpleNamespace(logits=scores), inputs)
        return value

    return rows(loss, chosen_scores, rejected_scores, margin)


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
    torch = module("torch")
    compute = module("trl.trainer.dpo_trainer").DPOTrainer._compute_loss
    trainer = _trainer(
        beta=beta,
        label_smoothing=label_smoothing,
        loss_types=[variant],
        loss_weights=[1.0],
        f_divergence_type="reverse_kl",
        ld_alpha=None,
        precompute_ref_logps=True,
        use_weighting=False,
    )

    def loss(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Tensor:
        log_probs = torch.stack([chosen, rejected])  # (2, 1): one response token each
        zero = log_probs.detach() * 0
        output = SimpleNamespace(
            log_probs=log_probs, entropy=zero, mean_logits=zero, is_top1=zero.bool()
        )
        inputs = {
            "input_ids": _ones(2, 2),
            "attention_mask": _ones(2, 2),
            "completion_mask": torch.tensor([[0, 1], [0, 1]]),
            "ref_chosen_logps": ref_chosen,
            "ref_rejected_logps": ref_rejected,
        }
        value: Tensor = compute(trainer, lambda **inputs: output, inputs, False)
        return value

    return rows(
        loss, policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps
    )


def orpo_loss(
    chosen_mean_logps: Tensor, rejected_mean_logps: Tensor, *, lam: float = 0.1
) -> Tensor:
    orpo = module("trl.experimental.orpo.orpo_trainer").ORPOTrainer
    trainer = _trainer(beta=lam)
    trainer.odds_ratio_loss = lambda *logps: orpo.odds_ratio_loss(trainer, *logps)

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        logits = chosen.detach()
        # the response's own mean NLL stands for TRL's, which it takes over prompt and response
        trainer.concatenated_forward = lambda *_: (chosen, rejected, logits, logits, -chosen.mean())
        value: Tensor = orpo.get_batch_loss_metrics(trainer, None, {})[0]
        return value

    return rows(loss, chosen_mean_logps, rejected_mean_logps)


def _grpo() -> Path:
    return Path(str(module("trl.trainer.grpo_trainer").__file__))


def kl_estimate(logps: Tensor, ref_logps: Tensor, *, kind: str = "k1") -> Tensor:
    if kind != "k3":
        raise NotImplementedError(f"GRPO has k3 only, not {kind}")
    names = {"per_token_logps": logps, "ref_per_token_logps": ref_logps, "torch": module("torch")}
    line = "per_token_kl = torch.exp("
    out: Tensor = run_block(_grpo(), line, line, names)["per_token_kl"]
    return out


def ppo_policy_loss(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, *, clip: float = 0.2
) -> Tensor:
    """GRPO's clipped surrogate, given a token's own advantage; it multiplies by the mask later."""
    options = SimpleNamespace(
        importance_sampling_level="token",
        epsilon_low=clip,
        epsilon_high=clip,
        loss_type="bnpo",
        args=SimpleNamespace(delta=None),
        beta=0.0,
    )
    names: dict[str, Any] = {
        "torch": module("torch"),
        "self": options,
        "advantages": advantages,
        "per_token_logps": logps,
        "old_per_token_logps": old_logps,
        "mask": mask,
    }
    whole = run_block(_grpo(), "log_ratio = ", "if self.loss_type == 'cispo'", names)
    every: Tensor = whole["per_token_loss"]

    def loss(token: Tensor, counted: Tensor) -> Tensor:
        given = {"torch": module("torch"), "per_token_loss": token, "mask": counted}
        line = "loss = (per_token_loss * mask).sum() / mask.sum()"
        value: Tensor = run_block(_grpo(), line, line, given)["loss"]
        return value

    return tokens(loss, every, mask)


def reduce(
    losses: Tensor, mask: Tensor, *, micro_batches: Sequence[int], unit: str = "token"
) -> Tensor:
    """SFTTrainer's, whose Trainer counts the tokens of the whole step (`num_items_in_batch`)."""
    if unit != "token":
        raise NotImplementedError("averages over tokens only")
    total = losses.new_zeros(())
    for part, keep in zip(losses.split(micro_batches), mask.split(micro_batches), strict=True):
        total = total + _sft(-part, keep, int(mask.sum()))
    return total
