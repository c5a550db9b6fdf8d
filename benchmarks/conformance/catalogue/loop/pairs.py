"""A loss's step on log-probs that are told to it: what it sums and averages, under which name."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from benchmarks.conformance.catalogue.loop.base import Seen, in_the_loop
from benchmarks.conformance.catalogue.loop.world import batch_of
from data.encode import Row
from data.trees import pack
from losses import LOSSES, log_odds


def dpo_of_two_pairs(*, variant: str = "sigmoid", reduction: str = "sum") -> list[Seen]:
    """A chosen response of 4 tokens, 1/4 above the reference each, and a rejected one of 2, 1/4
    below; and a longer pair that is as the reference has it. -9 stands at the padding."""
    table, batch = batch_of(
        [[-2.75] * 4, [-3.25] * 2, [-1.0] * 7, [-1.0] * 7],
        padding=-9.0,
        ref_logps=torch.tensor([-12.0, -6.0, -7.0, -7.0], dtype=torch.float64),
    )
    loss = LOSSES["dpo"]
    told = loss.step(table, batch, loss.config(variant=variant, logp_reduction=reduction))
    h = 1.5 if reduction == "sum" else 0.5
    first, second = ((h - 5) ** 2, 25.0) if variant == "ipo" else (softplus(-0.1 * h), math.log(2))
    chosen = -11.0 - 7.0 if reduction == "sum" else -2.75 - 1.0
    return [
        Seen("losses of both", first + second, told.totals["pairs"].item()),
        Seen("logps/chosen, their sum", chosen, told.metrics["logps/chosen"][0].item()),
    ]


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


@in_the_loop("C3", "losses.dpo:masked_sum", dpo_of_two_pairs)
def mean_over_the_width(right: Any, x: Tensor, mask: Tensor) -> Tensor:
    """The log-probs are averaged over the padded width: a response counts for less beside a longer
    one."""
    return torch.where(mask, x, 0.0).mean(-1)


@in_the_loop("C2", "losses.dpo:LOSS.step", dpo_of_two_pairs, variant="ipo", reduction="mean")
def ipo_of_sums(right: Any, logps: Tensor, batch: Any, config: Any) -> Any:
    """IPO aims at a fixed gap; of summed log-probs that gap is one of lengths: 12.25 for
    20.25."""
    return right(logps, batch, replace(config, logp_reduction="sum"))


# ---------------------------------------------------------------- ORPO


def orpo_of_two_pairs() -> list[Seen]:
    """Chosen responses of 1 and 4 tokens with -1 and -4 on each, rejected ones of -1.5, and -9 at
    the padding."""
    table, batch = batch_of([[-1.0], [-1.5] * 3, [-4.0] * 4, [-1.5] * 2], padding=-9.0)
    told = LOSSES["orpo"].step(table, batch, LOSSES["orpo"].config())

    def odds(a: float) -> float:
        return a - math.log1p(-math.exp(a))

    gaps = [odds(-1.0) - odds(-1.5), odds(-4.0) - odds(-1.5)]
    penalty = sum(softplus(-gap) for gap in gaps)
    mean = {name: float(total / count) for name, (total, count) in told.metrics.items()}
    return [
        Seen("sum of the losses", 5.0 + 0.1 * penalty, told.totals["pairs"].item()),
        Seen("nll_loss", 2.5, mean["nll_loss"]),
        Seen("log_odds_ratio", sum(gaps) / 2, mean["log_odds_ratio"]),
        Seen("mean_logps/chosen", -2.5, mean["mean_logps/chosen"]),
    ]


def orpo_with_a_prompt() -> list[Seen]:
    """A prompt of 2 tokens and a response of 3; minus the last four log-probs are 1, 2, 3, 4."""
    row = Row(0, [5, 6], [[7, 8, 9], [9, 8, 7]], [True] * 2, [4] * 2)
    batch = pack([row], layout="rectangle", prompts=True)
    table = -torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 2, dtype=torch.float64)
    told = LOSSES["orpo"].step(table, batch, LOSSES["orpo"].config())
    total, count = told.metrics["nll_loss"]
    return [Seen("nll_loss, over the response", 3.0, float(total / count))]


@in_the_loop("D3", "losses.orpo:likelihood_mask", orpo_with_a_prompt)
def prompt_in_the_likelihood(right: Any, batch: Any, config: Any) -> Tensor:
    """The likelihood term takes the prompt's tokens in: 2.5, the mean of 1, 2, 3, 4, for 3."""
    mask: Tensor = batch.mask[0::2] | batch.prompt_mask[0::2]
    return mask


@in_the_loop("D4", "losses.orpo:masked_mean", orpo_of_two_pairs)
def one_late_with_padding_in_it(right: Any, x: Tensor, mask: Tensor) -> Any:
    """The mask is a difference of two that are not shifted alike: one position of padding enters
    the mean log-prob."""
    longer = torch.nn.functional.pad(mask, (1, 0))[:, :-1]
    return right(x, mask | longer)


@in_the_loop("D5", "losses.orpo:masked_mean", orpo_of_two_pairs)
def over_the_padded_width(right: Any, x: Tensor, mask: Tensor) -> Tensor:
    """The cross entropy is averaged over the padded width, padding included."""
    return x.mean(-1)


@in_the_loop("D7", "losses.orpo:LOSS.step", orpo_of_two_pairs)
def mean_over_tokens(right: Any, logps: Tensor, batch: Any, config: Any) -> Any:
    """The likelihood is a mean over all tokens of the batch where the paper's is one over each
    pair: 3.4 for 2.5."""
    output = right(logps, batch, config)
    total, count = torch.where(batch.mask, -logps, 0.0)[0::2].sum(), batch.mask[0::2].sum()
    sums = output.metrics["nll_loss"][0] - total / count * batch.num_examples
    return replace(
        output,
        totals={"pairs": output.totals["pairs"] - sums},
        metrics=output.metrics | {"nll_loss": (total, count)},
    )


@in_the_loop("D8", "losses.orpo:LOSS.step", orpo_of_two_pairs)
def log_sigmoid_under_another_name(right: Any, logps: Tensor, batch: Any, config: Any) -> Any:
    """`log_odds_ratio` in the log is the log-sigmoid of the log-odds ratio: never above 0, whatever
    was learnt."""
    output = right(logps, batch, config)
    means = torch.where(batch.mask, logps, 0.0).sum(-1) / batch.mask.sum(-1)
    gap = log_odds(means[0::2]) - log_odds(means[1::2])
    count = torch.tensor(len(gap))
    return replace(
        output, metrics=output.metrics | {"log_odds_ratio": (logsigmoid(gap).sum(), count)}
    )
