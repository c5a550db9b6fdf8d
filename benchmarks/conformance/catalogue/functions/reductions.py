"""Wrong reductions, sft and reward losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.conformance.catalogue.mutant import Right, mutant

# ---------------------------------------------------------------------------- reductions


@mutant("masked_sum")
def multiplied_by_mask(right: Right, *, x: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
    """0 x NaN is NaN."""
    return (x * mask).sum(dim)


@mutant("masked_sum")
def the_rest(right: Right, *, x: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
    """The mask inverted."""
    return right(x, ~mask, dim)


@mutant("masked_mean", bug="C3")
def over_the_width(right: Right, *, x: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
    """Divided by the padded width: a row weighs less beside a longer one."""
    return torch.where(mask, x, 0.0).mean(dim)


@mutant("masked_mean", bug="A16")
def no_tokens_no_number(right: Right, *, x: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
    """0/0 for a row without a response token poisons the step."""
    return torch.where(mask, x, 0.0).sum(dim) / mask.sum(dim)


@mutant("masked_mean")
def over_all_rows(right: Right, *, x: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
    """One denominator for all rows."""
    return torch.where(mask, x, 0.0).sum(dim) / mask.sum().clamp(min=1)


# ----------------------------------------------------------------------------------- sft


@mutant("sft_loss")
def maximised_nll(right: Right, *, logps: Tensor, mask: Tensor) -> Tensor:
    """The sign."""
    return -right(logps, mask)


@mutant("sft_loss")
def reduced(right: Right, *, logps: Tensor, mask: Tensor) -> Tensor:
    """One number for the batch: nobody can divide by the right count any more."""
    return right(logps, mask).sum() / mask.sum()


@mutant("sft_loss", bug="A1")
def already_a_mean(right: Right, *, logps: Tensor, mask: Tensor) -> Tensor:
    """Divided by its own tokens: a mean of means under accumulation."""
    return right(logps, mask) / mask.sum()


@mutant("sft_loss", bug="B1")
def late_by_one(right: Right, *, logps: Tensor, mask: Tensor) -> Tensor:
    """Mask sliced [:-1] beside labels [1:]: the first response token is never trained."""
    return torch.where(mask & mask.roll(1, -1), -logps, 0.0)


@mutant("sft_loss")
def early_by_one(right: Right, *, logps: Tensor, mask: Tensor) -> Tensor:
    """The other way: the last prompt token is trained, the end token is not."""
    return right(logps, mask.roll(-1, -1))


@mutant("sft_loss")
def prompt_included(right: Right, *, logps: Tensor, mask: Tensor) -> Tensor:
    """Loss on everything in front of the response's end as well."""
    return right(logps, mask.flip(-1).cummax(-1).values.flip(-1))


@mutant("sft_loss")
def mask_ignored(right: Right, *, logps: Tensor, mask: Tensor) -> Tensor:
    """The mask not read at all."""
    return -logps


@mutant("sft_loss")
def zero_times_nan(right: Right, *, logps: Tensor, mask: Tensor) -> Tensor:
    """The mask multiplied instead of selected."""
    return -logps * mask


@mutant("sft_loss")
def zeroed_in_place(right: Right, *, logps: Tensor, mask: Tensor) -> Tensor:
    """Fine, but the caller's log-probs are gone."""
    if not logps.requires_grad:
        logps[~mask] = 0.0
    return right(logps, mask)


# -------------------------------------------------------------------------------- reward


@mutant("reward_loss")
def swapped(right: Right, *, chosen_scores: Tensor, rejected_scores: Tensor, **rest: Any) -> Tensor:
    """The rejected response wins."""
    return right(rejected_scores, chosen_scores, **rest)


@mutant("reward_loss", bug="E10")
def margin_helps(right: Right, *, margin: Tensor | None = None, **rest: Any) -> Tensor:
    """The margin's sign: the loss is content with less."""
    return right(**rest, margin=None if margin is None else -margin)


@mutant("reward_loss")
def margin_by_default(
    right: Right, *, margin: Tensor | None = None, chosen_scores: Tensor, **rest: Any
) -> Tensor:
    """Nobody asked for it, everybody gets it."""
    margin = torch.full_like(chosen_scores, 0.1) if margin is None else margin
    return right(chosen_scores=chosen_scores, margin=margin, **rest)


@mutant("reward_loss", bug="E10")
def margin_dropped(right: Right, *, margin: Tensor | None = None, **rest: Any) -> Tensor:
    """Accepted, then lost on the way."""
    return right(**rest)


@mutant("reward_loss", bug="E7")
def log_of_one_plus_exp(
    right: Right,
    *,
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    margin: Tensor | float = 0.0,
    center_coef: float = 0.0,
) -> Tensor:
    """log(1 + exp(-gap)) overflows where the model is most wrong."""
    nll = torch.log(1 + torch.exp(-(chosen_scores - rejected_scores - margin)))
    return nll + center_coef * (chosen_scores + rejected_scores) ** 2


@mutant("reward_loss")
def log_of_sigmoid(
    right: Right,
    *,
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    margin: Tensor | float = 0.0,
    center_coef: float = 0.0,
) -> Tensor:
    """log(sigmoid(gap)): log 0 from a gap of -104 in float32."""
    nll = -(chosen_scores - rejected_scores - margin).sigmoid().log()
    return nll + center_coef * (chosen_scores + rejected_scores) ** 2


@mutant("reward_loss", bug="E9")
def separate_squares(
    right: Right,
    *,
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    center_coef: float = 0.0,
    **rest: Any,
) -> Tensor:
    """Centres each score instead of their sum."""
    squares = chosen_scores**2 + rejected_scores**2
    return right(chosen_scores, rejected_scores, **rest) + center_coef * squares


@mutant("reward_loss")
def squared_margin_of_scores(
    right: Right,
    *,
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    center_coef: float = 0.0,
    **rest: Any,
) -> Tensor:
    """Centres the difference, which is what the model is to learn."""
    gap = chosen_scores - rejected_scores
    return right(chosen_scores, rejected_scores, **rest) + center_coef * gap**2


@mutant("reward_loss")
def rejected_detached(right: Right, *, rejected_scores: Tensor, **rest: Any) -> Tensor:
    """Half of the gradient."""
    return right(rejected_scores=rejected_scores.detach(), **rest)


@mutant("reward_loss")
def mean_for_sum(right: Right, *, chosen_scores: Tensor, **rest: Any) -> Tensor:
    """Reduced inside: every pair gets the batch's loss."""
    return right(chosen_scores=chosen_scores, **rest).mean().expand_as(chosen_scores)
