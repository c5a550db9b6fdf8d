"""Losses that are wrong on purpose, most of them bugs that somebody shipped.

Each is a few lines around `right`, the true function, with one thing broken; its docstring is the
story, with the bug's number in bugs.py where it has one.  test_mutants.py demands that the suite
rejects every one: a check that no wrong loss fails is no check.  Here are the reductions, sft and
reward; pairs, head, gae and ppo have a file each.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

import losses


@dataclass(frozen=True)
class Mutant:
    of: str  # the function it stands in for
    fn: Callable

    def __call__(self, **inputs):
        return self.fn(getattr(losses, self.of), **inputs)

    def __str__(self):
        return f"{self.of}-{self.fn.__name__}"


MUTANTS: list[Mutant] = []


def mutant(of):
    return lambda fn: MUTANTS.append(Mutant(of, fn)) or fn


# ---------------------------------------------------------------------------- reductions


@mutant("masked_sum")
def multiplied_by_mask(right, *, x, mask, dim=-1):
    """0 x NaN is NaN."""
    return (x * mask).sum(dim)


@mutant("masked_sum")
def the_rest(right, *, x, mask, dim=-1):
    """The mask inverted."""
    return right(x, ~mask, dim)


@mutant("masked_mean")
def over_the_width(right, *, x, mask, dim=-1):
    """Divided by the padded width: a row weighs less beside a longer one (C3, D5)."""
    return torch.where(mask, x, 0.0).mean(dim)


@mutant("masked_mean")
def no_tokens_no_number(right, *, x, mask, dim=-1):
    """0/0 for a row without a response token poisons the step (A16)."""
    return torch.where(mask, x, 0.0).sum(dim) / mask.sum(dim)


@mutant("masked_mean")
def over_all_rows(right, *, x, mask, dim=-1):
    """One denominator for all rows."""
    return torch.where(mask, x, 0.0).sum(dim) / mask.sum().clamp(min=1)


# ----------------------------------------------------------------------------------- sft


@mutant("sft_loss")
def maximised_nll(right, *, logps, mask):
    """The sign."""
    return -right(logps, mask)


@mutant("sft_loss")
def reduced(right, *, logps, mask):
    """One number for the batch: nobody can divide by the right count any more."""
    return right(logps, mask).sum() / mask.sum()


@mutant("sft_loss")
def already_a_mean(right, *, logps, mask):
    """Divided by its own tokens: a mean of means under accumulation (A1)."""
    return right(logps, mask) / mask.sum()


@mutant("sft_loss")
def late_by_one(right, *, logps, mask):
    """Mask sliced [:-1] beside labels [1:]: the first response token is never trained (B1)."""
    return torch.where(mask & mask.roll(1, -1), -logps, 0.0)


@mutant("sft_loss")
def early_by_one(right, *, logps, mask):
    """The other way: the last prompt token is trained, the end token is not."""
    return right(logps, mask.roll(-1, -1))


@mutant("sft_loss")
def prompt_included(right, *, logps, mask):
    """Loss on everything in front of the response's end as well."""
    return right(logps, mask.flip(-1).cummax(-1).values.flip(-1))


@mutant("sft_loss")
def mask_ignored(right, *, logps, mask):
    return -logps


@mutant("sft_loss")
def zero_times_nan(right, *, logps, mask):
    """The mask multiplied instead of selected."""
    return -logps * mask


@mutant("sft_loss")
def zeroed_in_place(right, *, logps, mask):
    """Fine, but the caller's log-probs are gone."""
    if not logps.requires_grad:
        logps[~mask] = 0.0
    return right(logps, mask)


# -------------------------------------------------------------------------------- reward


@mutant("reward_loss")
def swapped(right, *, chosen_scores, rejected_scores, **rest):
    """The rejected response wins."""
    return right(rejected_scores, chosen_scores, **rest)


@mutant("reward_loss")
def margin_helps(right, *, margin=None, **rest):
    """The margin's sign: the loss is content with less (E10)."""
    return right(**rest, margin=None if margin is None else -margin)


@mutant("reward_loss")
def margin_by_default(right, *, margin=None, chosen_scores, **rest):
    """Nobody asked for it, everybody gets it."""
    margin = torch.full_like(chosen_scores, 0.1) if margin is None else margin
    return right(chosen_scores=chosen_scores, margin=margin, **rest)


@mutant("reward_loss")
def margin_dropped(right, *, margin=None, **rest):
    """Accepted, then lost on the way (E10)."""
    return right(**rest)


@mutant("reward_loss")
def log_of_one_plus_exp(right, *, chosen_scores, rejected_scores, margin=0.0, center_coef=0.0):
    """log(1 + exp(-gap)) overflows where the model is most wrong (E7)."""
    nll = torch.log(1 + torch.exp(-(chosen_scores - rejected_scores - margin)))
    return nll + center_coef * (chosen_scores + rejected_scores) ** 2


@mutant("reward_loss")
def log_of_sigmoid(right, *, chosen_scores, rejected_scores, margin=0.0, center_coef=0.0):
    """log(sigmoid(gap)): log 0 from a gap of -104 in float32."""
    nll = -(chosen_scores - rejected_scores - margin).sigmoid().log()
    return nll + center_coef * (chosen_scores + rejected_scores) ** 2


@mutant("reward_loss")
def separate_squares(right, *, chosen_scores, rejected_scores, center_coef=0.0, **rest):
    """Centres each score instead of their sum (E9)."""
    squares = chosen_scores**2 + rejected_scores**2
    return right(chosen_scores, rejected_scores, **rest) + center_coef * squares


@mutant("reward_loss")
def squared_margin_of_scores(right, *, chosen_scores, rejected_scores, center_coef=0.0, **rest):
    """Centres the difference, which is what the model is to learn."""
    gap = chosen_scores - rejected_scores
    return right(chosen_scores, rejected_scores, **rest) + center_coef * gap**2


@mutant("reward_loss")
def rejected_detached(right, *, rejected_scores, **rest):
    """Half of the gradient."""
    return right(rejected_scores=rejected_scores.detach(), **rest)


@mutant("reward_loss")
def mean_for_sum(right, *, chosen_scores, **rest):
    """Reduced inside: every pair gets the batch's loss."""
    return right(chosen_scores=chosen_scores, **rest).mean().expand_as(chosen_scores)
