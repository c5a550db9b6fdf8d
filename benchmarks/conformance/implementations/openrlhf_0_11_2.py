"""OpenRLHF 0.11.2: models/loss.py, the KL estimators and log-probs of models/utils.py, its GAE.

Importing it needs deepspeed, flash-attn and ray, so classes and functions are cut out of the
installed files (`pip install --no-deps`) and compiled as they stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..peer_code import (
    functions,
    module,
    right_padded,
    rows,
    source_of,
    tokens,
    versions,
)

if TYPE_CHECKING:
    from torch import Tensor

VERSIONS = versions("openrlhf==0.11.2", "torch")
CUTS = ("8", "4-4", "5-3", "1-7", "2-2-2-2", "1-1-1-1-1-1-1-1")
REDUCED = (
    *("mean-of-means", "one-batch", "rows", "rows-one-batch", "empty-micro-batch", "rows-empty"),
    *(f"{unit}cut-{cut}" for unit in ("", "rows-") for cut in CUTS),
    "cancelling",
)
PADDING = "padding is multiplied by the mask, so it has to be finite"
CLAMP = "the log-ratio is clamped to 20 in size before exp"
CONVENTIONS = {
    "kl": "computed in float32 and clamped to 10 in size, as the log-ratio of k3 is from below",
    "policy/vanished": CLAMP,
    "policy/large-ratio": CLAMP,
    "sft": PADDING,
    "gae": PADDING,
    "policy/padding-nan": PADDING,
    "policy/padding-overflow": PADDING,
    "value": PADDING,
    **{f"reduce/{name}": PADDING for name in REDUCED},
}


@cache
def _code() -> SimpleNamespace:
    torch = module("torch")
    given: dict[str, Any] = {"torch": torch, "nn": torch.nn, "F": torch.nn.functional}
    given.update(vars(module("typing")))
    names = ["masked_mean", "compute_approx_kl", "log_probs_from_logits", "_logsumexp_by_chunk"]
    utils = functions(source_of("openrlhf", "models/utils.py"), names, given)
    given.update(vars(utils))
    names = ["aggregate_loss", "SFTLoss", "PolicyLoss", "ValueLoss", "PairWiseLoss", "DPOLoss"]
    losses = functions(source_of("openrlhf", "models/loss.py"), names, given)
    file = source_of("openrlhf", "trainer/ppo_utils/experience_maker.py")
    maker = functions(file, ["get_advantages_and_returns"], given)
    return SimpleNamespace(**vars(utils), **vars(losses), **vars(maker))


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    logits = module("torch").nn.functional.linear(hidden, weight, bias)
    out: Tensor = _code().log_probs_from_logits(logits[None], targets[None], temperature)[0]
    return out


def sft_loss(logps: Tensor, mask: Tensor) -> Tensor:
    loss = _code().SFTLoss()
    return tokens(lambda logp, one: loss(logp, one, batch_num_tokens=1), logps, mask)


def reward_loss(
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    *,
    margin: Tensor | None = None,
    center_coef: float = 0.0,
) -> Tensor:
    if center_coef:
        raise NotImplementedError("has no centring term")
    return rows(_code().PairWiseLoss(), chosen_scores, rejected_scores, margin)


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
    if variant not in ("sigmoid", "ipo"):
        raise NotImplementedError(f"has sigmoid and ipo, not {variant}")
    loss = _code().DPOLoss(beta, label_smoothing, ipo=variant == "ipo")
    return rows(
        lambda *logps: loss(*logps)[0],
        policy_chosen_logps,
        policy_rejected_logps,
        ref_chosen_logps,
        ref_rejected_logps,
    )


def kl_estimate(logps: Tensor, ref_logps: Tensor, *, kind: str = "k1") -> Tensor:
    out: Tensor = _code().compute_approx_kl(logps, ref_logps, kl_estimator=kind)
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
    method = _code().get_advantages_and_returns
    advantages, returns = method(None, values, rewards, mask, gamma, lam)
    return advantages, returns


def ppo_policy_loss(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, *, clip: float = 0.2
) -> Tensor:
    policy = _code().PolicyLoss(clip_eps_low=clip, clip_eps_high=clip)

    def loss(new: Tensor, old: Tensor, advantage: Tensor, one: Tensor) -> Tensor:
        out: Tensor = policy(new, old, advantage, one, batch_num_tokens=1)[0]
        return out

    return tokens(loss, logps, old_logps, advantages, mask)


def ppo_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, clip: float = 0.2
) -> Tensor:
    value = _code().ValueLoss(clip_eps=clip)

    def loss(new: Tensor, old: Tensor, target: Tensor, one: Tensor) -> Tensor:
        out: Tensor = value(new, old, target, one, batch_num_tokens=1)
        return out

    return tokens(loss, values, old_values, returns, mask)


def reduce(
    losses: Tensor, mask: Tensor, *, micro_batches: Sequence[int], unit: str = "token"
) -> Tensor:
    by_token = unit == "token"
    aggregate = _code().aggregate_loss
    total = losses.new_zeros(())
    for part, keep in zip(losses.split(micro_batches), mask.split(micro_batches), strict=True):
        total = total + aggregate(
            part,
            keep,
            token_level_loss=by_token,
            batch_num_tokens=mask.sum(),
            global_batch_size=len(mask),
        )
    return total
