"""TRL 1.12.0: PPOTrainer (experimental), the last release before 1.13 that has it.

Its formulas are statements of one long `train` method, so they are cut out of the installed file
and run as they stand, in the order in which `train` runs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..peer_code import (
    module,
    right_padded,
    run_block,
    tokens,
    versions,
    zero_padding,
)

if TYPE_CHECKING:
    from torch import Tensor

VERSIONS = versions("trl==1.12.0", "transformers", "torch")
CONVENTIONS = {
    "gae": "an episode ends one token after the last, where TRL keeps the critic's value and puts"
    " the score",
    "whiten": "the variance of a sample, n - 1 (none for one token)",
}


def _run(first: str, last: str, **given: Any) -> dict[str, Any]:
    trainer = module("trl.experimental.ppo.ppo_trainer")
    names = {
        "torch": module("torch"),
        "masked_mean": trainer.masked_mean,
        "INVALID_LOGPROB": trainer.INVALID_LOGPROB,
        "micro_batch_inds": slice(None),
    }
    return run_block(Path(str(trainer.__file__)), first, last, {**names, **given})


def kl_estimate(logps: Tensor, ref_logps: Tensor, *, kind: str = "k1") -> Tensor:
    if kind == "k2":
        raise NotImplementedError("has k1 and k3 only")
    args = SimpleNamespace(kl_estimator=kind)
    out: Tensor = _run("logr = ", "kl = ", logprobs=logps, ref_logprobs=ref_logps, args=args)["kl"]
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
    (rewards,) = zero_padding(mask, rewards)  # minus KL, which is 0 on padding
    padded = _run(
        "response_idxs = ",
        "values = torch.masked_fill(",
        responses=rewards,
        sequence_lengths=right_padded(mask) - 1,  # theirs is the last token's position
        logprobs=rewards,
        ref_logprobs=rewards,
        values=values,
    )
    args = SimpleNamespace(gamma=gamma, lam=lam)
    padded.update(rewards=rewards, responses=rewards, args=args)
    done = _run("lastgaelam = 0", "returns = ", **padded)
    return done["advantages"].masked_fill(~mask, 0), done["returns"].masked_fill(~mask, 0)


def masked_whiten(x: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    whiten = module("trl.experimental.ppo.ppo_trainer").masked_whiten
    white: Tensor = whiten(*zero_padding(mask, x), mask, shift_mean=shift_mean)
    names = {"advantages": white, "padding_mask": ~mask}
    line = "advantages = torch.masked_fill("
    out: Tensor = _run(line, line, **names)["advantages"]
    return out


def ppo_policy_loss(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, *, clip: float = 0.2
) -> Tensor:
    names: dict[str, Any] = {"padding_mask": ~mask, "new_logprobs": logps, "logprobs": old_logps}
    names.update(advantages=advantages, args=SimpleNamespace(cliprange=clip))
    for line in (
        "logprobs = torch.masked_fill(",
        "advantages = torch.masked_fill(",
        "new_logprobs = torch.masked_fill(",
    ):
        names = _run(line, line, **names)
    names.update(mb_logprobs=names["logprobs"], mb_advantage=names["advantages"])
    every: Tensor = _run("logprobs_diff = ", "pg_loss_max = ", **names)["pg_loss_max"]

    def loss(token: Tensor) -> Tensor:
        line = "pg_loss = masked_mean("
        given = {"pg_loss_max": token, "padding_mask": token != token}
        out: Tensor = _run(line, line, **given)["pg_loss"]
        return out

    return tokens(loss, every, only=mask)


def ppo_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, clip: float = 0.2
) -> Tensor:
    (returns,) = zero_padding(mask, returns)  # rewards and values are 0 there, so they are
    fill = "values = torch.masked_fill("
    old = _run(fill, fill, values=old_values, padding_mask_p1=~mask)["values"]
    fill = "vpred = torch.masked_fill("
    new = _run(fill, fill, vpred=values, padding_mask_p1=~mask)["vpred"]
    args = SimpleNamespace(cliprange_value=clip)
    names = {"vpred": new, "mb_values": old, "mb_return": returns, "args": args}
    every: Tensor = _run("vpredclipped = ", "vf_loss_max = ", **names)["vf_loss_max"]

    def loss(token: Tensor) -> Tensor:
        line = "vf_loss = 0.5 * masked_mean("
        given = {"vf_loss_max": token, "padding_mask_p1": token != token}
        out: Tensor = _run(line, line, **given)["vf_loss"]
        return out

    return tokens(loss, every, only=mask)


def reduce(
    losses: Tensor, mask: Tensor, *, micro_batches: Sequence[int], unit: str = "token"
) -> Tensor:
    """PPOTrainer's mean a micro-batch, each divided by their number in Accelerator.backward."""
    if unit != "token":
        raise NotImplementedError("averages over tokens only")
    (losses,) = zero_padding(mask, losses)  # log-probs and advantages are filled there
    backward = Path(str(module("accelerate.accelerator").__file__))
    step = SimpleNamespace(gradient_accumulation_steps=len(micro_batches))
    total = losses.new_zeros(())
    for part, keep in zip(losses.split(micro_batches), mask.split(micro_batches), strict=True):
        line = "pg_loss = masked_mean("
        loss = _run(line, line, pg_loss_max=part, padding_mask=~keep)["pg_loss"]
        line = "loss = loss / self.gradient_accumulation_steps"
        total = total + run_block(backward, line, line, {"loss": loss, "self": step})["loss"]
    return total
