"""One optimizer step against the same step by hand: each row alone, one division, one backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

import train
from benchmarks.conformance.catalogue.loop.base import Seen, in_the_loop
from benchmarks.conformance.catalogue.loop.world import (
    CPU,
    alone,
    flat_gradient,
    one_process,
    rows,
    tiny,
)
from data.encode import Row
from losses import LOSSES
from losses.base import Loss
from losses.forward import Policy
from runtime.config import TrainConfig
from runtime.inputs import Rows

REFERENCE = torch.tensor([[-9.0, -6.0], [-5.0, -11.0], [-14.0, -8.0], [-7.0, -6.0], [-16.0, -4.0]])


def by_hand(name: str, model: nn.Module, data: Sequence[Row], **options: Any) -> Tensor:
    """The loss of a step over `data`, a scalar with its graph, at the losses' default options."""
    logps = [[alone(model, row.prompt, answer) for answer in row.responses] for row in data]
    if name == "sft":
        flat = torch.cat([answers[0] for answers in logps])
        return -flat.sum() / len(flat)
    if name == "dpo":
        ref = REFERENCE.double()[[row.index for row in data]]
        sums = torch.stack([torch.stack([a.sum() for a in answers]) for answers in logps])
        h = (sums - ref)[:, 0] - (sums - ref)[:, 1]
        return -logsigmoid(0.1 * h).mean()
    assert name == "orpo"
    means = torch.stack([torch.stack([a.mean() for a in answers]) for answers in logps])
    odds = means - torch.log1p(-means.exp())
    nll = -means[:, 0].mean()
    if options.get("nll_reduction") == "token":
        nll = -torch.cat([answers[0] for answers in logps]).mean()
    return nll - 0.1 * logsigmoid(odds[:, 0] - odds[:, 1]).mean()


def data_of(name: str) -> tuple[Loss, Rows]:
    loss = LOSSES[name]
    ref = REFERENCE.double() if loss.needs_reference else None
    return loss, Rows(rows(loss.responses_per_row), "tree", ref)


def pieces(cut: Sequence[int]) -> list[list[int]]:
    """(2, 1) as [[0, 1], [2]]: rows of each micro-batch."""
    starts = [sum(cut[:i]) for i in range(len(cut))]
    return [list(range(start, start + size)) for start, size in zip(starts, cut, strict=True)]


def compared(loss: Tensor, gradient: Tensor, logged: float, got: Tensor) -> list[Seen]:
    return [
        Seen("loss in the log", loss.item(), logged),
        Seen("length of the gradient", gradient.norm().item(), got.norm().item()),
        Seen("distance from the right gradient", 0.0, (got - gradient).norm().item()),
    ]


def one_step(loss: str = "sft", cut: Sequence[int] = (5,), **options: Any) -> list[Seen]:
    """A step of five rows (or the first few), cut into micro-batches of these sizes."""
    twin, members = tiny(), pieces(cut)
    record, data = data_of(loss)
    expected = by_hand(loss, twin, [data.rows[i] for part in members for i in part], **options)
    expected.backward()

    policy, config = Policy(tiny()), record.config(**options)
    batches = [data.batch(part, CPU) for part in members]
    _, metrics = train.optimizer_step(one_process(), policy, record, config, batches)
    return compared(expected, flat_gradient(twin), metrics["loss"], flat_gradient(policy))


# ---------------------------------------------------------------- what is divided by what


def each_by_itself(
    right: Any,
    accelerator: Any,
    policy: nn.Module,
    loss: Loss,
    config: Any,
    batches: list[Any],
    *,
    weight: float,
) -> tuple[dict[str, int], dict[str, float]]:
    """Every micro-batch's mean over its own units, times `weight`, added up."""

    def scaled(outputs: Any, batch: Any, config: Any) -> Any:
        output = loss.step(outputs, batch, config)
        totals = {unit: weight * total for unit, total in output.totals.items()}
        return replace(output, totals=totals)

    one = replace(loss, step=scaled)
    found = [right(accelerator, policy, one, config, [batch]) for batch in batches]
    units = {unit: sum(counts[unit] for counts, _ in found) for unit in found[0][0]}
    metrics = {name: fmean(told[name] for _, told in found) for name in found[0][1]}
    return units, metrics | {"loss": sum(told["loss"] for _, told in found)}


@in_the_loop("A1", "train:optimizer_step", one_step, cut=(1, 1, 1, 1, 1))
def mean_of_means(right: Any, *args: Any) -> Any:
    """Each micro-batch averages over its own tokens and the averages are averaged: a token of a
    short response counts for more than one of a long response."""
    return each_by_itself(right, *args, weight=1 / len(args[-1]))


@in_the_loop("A4", "train:optimizer_step", one_step, loss="dpo", cut=(1, 1, 1, 1))
def mean_taken_for_a_share(right: Any, *args: Any) -> Any:
    """The loss is a mean already, and the loop believes that somebody divided it by the number of
    micro-batches: the gradient is that many times too large."""
    return each_by_itself(right, *args, weight=1.0)


@in_the_loop("A6", "train:optimizer_step", one_step, cut=(1,))
def short_window_divided_by_four(right: Any, *args: Any) -> Any:
    """The last window of an epoch has one micro-batch and is divided by the four that were asked
    for."""
    return each_by_itself(right, *args, weight=1 / 4)


@in_the_loop("A7", "train:optimizer_step", one_step, loss="dpo", cut=(3, 2))
def fixed_number_of_shares(right: Any, *args: Any) -> Any:
    """Micro-batches of whatever size fits (3 rows, then 2), each weighing one half."""
    return each_by_itself(right, *args, weight=1 / 2)


@in_the_loop("A8", "train:optimizer_step", one_step, loss="orpo", cut=(1, 1, 1, 1))
def divided_after_backward(right: Any, *args: Any) -> Any:
    """Divided by the number of micro-batches for the log, after backward has run: the curve looks
    right and the gradient is four times too large."""
    units, metrics = each_by_itself(right, *args, weight=1.0)
    return units, metrics | {"loss": metrics["loss"] / len(args[-1])}


@in_the_loop("A13", "train:count_units", one_step, loss="dpo", cut=(3, 2))
def sum_over_micro_batches(
    right: Any, accelerator: Any, loss: Any, config: Any, batches: Any
) -> Any:
    """Sums over the pairs of a micro-batch, divided by the number of micro-batches: the gradient
    grows with the micro-batch."""
    return {unit: len(batches) for unit in right(accelerator, loss, config, batches)}


@in_the_loop("A3", "losses.sft:LOSS.units", one_step)
def labels_that_are_no_targets(right: Any, batch: Any, config: Any) -> dict[str, int]:
    """The labels are counted before they are shifted, so with the first one of every row, which
    nothing predicts."""
    return {unit: count + batch.num_sequences for unit, count in right(batch, config).items()}


@in_the_loop("H9", "train:optimizer_step", one_step, cut=(1, 1, 1, 1, 1))
def zeroed_between_micro_batches(
    right: Any, accelerator: Any, policy: nn.Module, *rest: Any
) -> Any:
    """zero_grad stands inside the loop over micro-batches: only the last one's gradient is left."""
    hook = policy.register_forward_pre_hook(lambda *_: policy.zero_grad())
    try:
        return right(accelerator, policy, *rest)
    finally:
        hook.remove()


@in_the_loop(
    "C17", "losses.orpo:LOSS.step", one_step, loss="orpo", cut=(4, 1), nll_reduction="token"
)
def one_denominator_for_two_means(right: Any, logps: Tensor, batch: Any, config: Any) -> Any:
    """The likelihood term is a mean over this micro-batch's tokens and is then averaged like the
    preference term, over pairs."""
    output = right(logps, batch, config)
    tokens = int(batch.mask[0::2].sum())
    mean = output.totals["tokens"] / tokens * batch.num_examples
    nothing = torch.zeros_like(mean)
    return replace(output, totals={"pairs": output.totals["pairs"] + mean, "tokens": nothing})


# ---------------------------------------------------------------- what is logged


@in_the_loop("A9", "runtime.metrics:Totals.reduce", one_step, cut=(1, 1, 1, 1))
def logged_loss_scaled_twice(right: Any, self: Any, accelerator: Any) -> dict[str, float]:
    """The loss in the log is divided by the number of micro-batches once more: it changes with the
    micro-batch while the training does not."""
    count = len(self.parts["loss per tokens"])
    told: dict[str, float] = right(self, accelerator)
    return told | {"loss": told["loss"] / count}


@in_the_loop("A10", "runtime.metrics:Totals.add", one_step, cut=(2, 3))
def last_micro_batch_logged(right: Any, self: Any, metrics: Any, *, dummy: bool = False) -> None:
    """The dictionary of metrics is overwritten by every micro-batch: the log shows the last one."""
    for name in metrics:
        self.parts.pop(name, None)
    right(self, metrics, dummy=dummy)


@in_the_loop("C16", "runtime.metrics:Totals.reduce", one_step)
def running_mean_from_zero(right: Any, self: Any, accelerator: Any) -> dict[str, float]:
    """The log shows a running mean that starts at 0: a first loss ten times too low."""
    told: dict[str, float] = right(self, accelerator)
    return told | {"loss": 0.9 * 0.0 + 0.1 * told["loss"]}


# ---------------------------------------------------------------- the learning rate


def first_rate() -> list[Seen]:
    """The learning rate of the first steps, of ten, with a warm-up of two."""
    config = TrainConfig(loss="sft", learning_rate=0.3, warmup=2)
    rates = [train.learning_rate(step, 10, config) for step in (1, 2, 3)]
    return [Seen("learning rates of the first three steps", [0.1, 0.2, 0.3], rates)]


@in_the_loop("H10", "train:learning_rate", first_rate)
def first_step_at_rate_zero(right: Any, step: int, steps: int, config: Any) -> Any:
    """The schedule is asked one step early and starts at 0: the first update changes nothing."""
    return right(step - 1, steps, config)
