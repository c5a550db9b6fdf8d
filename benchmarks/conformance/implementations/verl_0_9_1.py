"""verl 0.9.1: trainer/ppo/core_algos.py and utils/torch_functional.py.

Importing it needs ray and a cluster's packages, so functions are cut out of the installed files
(`pip install --no-deps`) and compiled as they stand. `compute_gae_advantage_return` whitens what it
returns, so its recursion is cut out to be compared alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..peer_code import (
    functions,
    module,
    run_block,
    source_of,
    tokens,
    versions,
)

if TYPE_CHECKING:
    from torch import Tensor

VERSIONS = versions("verl==0.9.1", "torch")
CLAMP = "k3 is clamped to 10, its log-ratio to 20 in size"
DUAL = "dual-clip (arXiv 1912.09729, c = 3) is always on, and the log-ratio clamped to 20 in size"
PADDING = "padding is multiplied by the mask, so it has to be finite"
CUTS = ("8", "4-4", "5-3", "1-7", "2-2-2-2", "1-1-1-1-1-1-1-1")
CONVENTIONS = {
    "kl/k3-far": CLAMP,
    "kl/k3-random": CLAMP,
    "policy": DUAL,
    "whiten": "the variance of a sample, n - 1; one token or none is refused",
    "gae": PADDING,
    "value": PADDING,
    **{f"reduce/rows-cut-{cut}": PADDING for cut in CUTS},
    **{f"reduce/{name}": PADDING for name in ("rows", "rows-one-batch", "rows-empty")},
}


def _algorithms() -> Any:
    return source_of("verl", "trainer/ppo/core_algos.py")


@cache
def _code() -> SimpleNamespace:
    torch = module("torch")
    given: dict[str, Any] = {"torch": torch, "F": torch.nn.functional}
    names = ["masked_sum", "masked_mean", "masked_var", "masked_whiten", "clip_by_value"]
    names += ["gather_from_labels", "logprobs_from_logits_v2"]
    tools = functions(source_of("verl", "utils/torch_functional.py"), names, given)
    given.update(verl_F=tools, AlgoConfig=type(None), register_policy_loss=lambda _: lambda f: f)
    names = ["agg_loss", "compute_policy_loss_vanilla", "compute_value_loss", "kl_penalty_forward"]
    return SimpleNamespace(**vars(tools), **vars(functions(_algorithms(), names, given)))


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    if temperature != 1.0:
        raise NotImplementedError("the caller divides the logits")
    logits = module("torch").nn.functional.linear(hidden, weight, bias)
    out: Tensor = _code().logprobs_from_logits_v2(logits[None], targets[None])[0]
    return out


def kl_estimate(logps: Tensor, ref_logps: Tensor, *, kind: str = "k1") -> Tensor:
    out: Tensor = _code().kl_penalty_forward(logps, ref_logps, kind)
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
    names: dict[str, Any] = {"torch": module("torch"), "token_level_rewards": rewards}
    names.update(values=values, response_mask=mask.long(), gamma=gamma, lam=lam)
    done = run_block(_algorithms(), "nextvalues = 0", "returns = ", names)
    return done["advantages"].masked_fill(~mask, 0), done["returns"].masked_fill(~mask, 0)


def masked_whiten(x: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    white: Tensor = _code().masked_whiten(x, mask.long(), shift_mean)
    return white.masked_fill(~mask, 0)  # what stands on padding is not read later


def ppo_policy_loss(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, *, clip: float = 0.2
) -> Tensor:
    config = SimpleNamespace(
        clip_ratio=clip,
        clip_ratio_low=None,
        clip_ratio_high=None,
        get=lambda _, default: default,
        global_batch_info={"batch_num_tokens": 1},
    )

    def loss(new: Tensor, old: Tensor, advantage: Tensor, one: Tensor) -> Tensor:
        policy = _code().compute_policy_loss_vanilla
        out: Tensor = policy(old, new, advantage, one, config=config)[0]
        return out

    return tokens(loss, logps, old_logps, advantages, mask.long())


def ppo_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, clip: float = 0.2
) -> Tensor:
    def loss(new: Tensor, old: Tensor, target: Tensor, one: Tensor) -> Tensor:
        value = _code().compute_value_loss
        out: Tensor = value(new, target, old, one, clip, batch_num_tokens=1)[0]
        return out

    return tokens(loss, values, old_values, returns, mask.long())


def reduce(
    losses: Tensor, mask: Tensor, *, micro_batches: Sequence[int], unit: str = "token"
) -> Tensor:
    mode = {"token": "token-mean", "row": "seq-mean-token-mean"}[unit]
    total = losses.new_zeros(())
    for part, keep in zip(losses.split(micro_batches), mask.split(micro_batches), strict=True):
        total = total + _code().agg_loss(
            part, keep.long(), mode, batch_num_tokens=mask.sum(), global_batch_size=len(mask)
        )
    return total
