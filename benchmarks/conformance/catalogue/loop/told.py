"""PPO's step on numbers that are told to it: its loss, and what it says of itself in the log."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import pvariance
from typing import Any

import torch
from torch import Tensor

from benchmarks.conformance.catalogue.loop.base import Seen, in_the_loop
from benchmarks.conformance.catalogue.loop.world import batch_of, one_process
from data.trees import Trajectory
from losses.forward import ActorCriticOutput
from losses.ppo import LOSS, PPOConfig, ppo_value_loss
from runtime import prompt_source
from runtime.metrics import Totals

STEP = "losses.ppo:LOSS.step"


def four_tokens(*, drift: float = 0.0) -> list[Seen]:
    """Responses of 1 and 3 tokens with ratios 0.8 | 1.2, 1, 1, advantages of 1, and a critic that
    is 1/2, 1/2, 1/4, 0 too low. `drift` is added to the last log-ratio."""
    log_ratios = [math.log(0.8), math.log(1.2), 0.0, drift]
    old, misses = -3.0, [0.5, 0.5, 0.25, 0.0]
    logps, batch = batch_of([[old + log_ratios[0]], [old + x for x in log_ratios[1:]]])
    logps.requires_grad_()
    mask = batch.mask
    tables = [torch.where(mask, x, 0.0).double() for x in (old, 0.0, 1.0, 0.0, -2.0)]
    past = Trajectory(tables[0], tables[1], tables[2], tables[3], tables[4])
    past.returns[mask] = torch.tensor(misses, dtype=torch.float64)
    outputs = ActorCriticOutput(
        logps, torch.zeros_like(logps), logps.new_zeros(2), torch.zeros_like(logps)
    )
    config = PPOConfig(kl_coef=0.05, clip=0.5)
    told = LOSS.step(outputs, replace(batch, trajectory=past), config)
    totals = Totals()
    totals.add(told.metrics)
    metrics = totals.reduce(one_process())

    ratios = [math.exp(x) for x in log_ratios]
    policy = -sum(min(r, 1.5) for r in ratios)
    value = sum(0.5 * miss**2 for miss in misses)
    graphs = sum(sum_.requires_grad for sum_, _ in told.metrics.values())
    return [
        Seen("sum of the losses", policy + 0.1 * value, told.totals["tokens"].item()),
        Seen(
            "policy/approxkl_avg",
            sum(x * x for x in log_ratios) / 8,
            metrics["policy/approxkl_avg"],
        ),
        Seen("val/ratio", sum(ratios) / 4, metrics["val/ratio"]),
        Seen("val/ratio_var", pvariance(ratios), prompt_source.ratio_variance(metrics)),
        Seen("metrics that hold a graph", 0, graphs),
    ]


@in_the_loop("H7", STEP, four_tokens)
def one_switch_for_two_penalties(right: Any, outputs: Any, batch: Any, config: Any) -> Any:
    """One coefficient for the KL in the reward and for the KL in the loss: who sets one has the
    other as well."""
    return right(outputs, batch, replace(config, kl_loss_coef=config.kl_coef))


@in_the_loop("H14", STEP, four_tokens)
def critic_averaged_by_row(right: Any, outputs: Any, batch: Any, config: Any) -> Any:
    """The policy's loss is summed over tokens and the critic's is averaged over each row first: the
    critic of a long response learns less."""
    output = right(outputs, batch, config)
    old, clip = batch.trajectory, config.value_clip
    losses = ppo_value_loss(outputs.values, old.old_values, old.returns, batch.mask, clip=clip)
    by_row = losses.sum(-1) / batch.mask.sum(-1)
    change = config.value_coef * (by_row.sum() - losses.sum())
    return replace(output, totals={"tokens": output.totals["tokens"] + change})


@in_the_loop("H11", "losses.ppo:metric", four_tokens)
def logged_with_its_graph(right: Any, values: Tensor, mask: Tensor) -> Any:
    """The ratio is kept for the log without a detach: the graphs of all steps stay in memory."""
    return torch.where(mask, values, 0.0).sum(), mask.sum()


@in_the_loop("I2", "losses.ppo:metric", four_tokens)
def mean_over_padding(right: Any, values: Tensor, mask: Tensor) -> Any:
    """Metrics are plain means over the table: two thirds of the number where a third is padding."""
    return right(torch.where(mask, values, 0.0))


@in_the_loop("I3", STEP, four_tokens)
def minus_the_ratio(right: Any, outputs: Any, batch: Any, config: Any) -> Any:
    """The policy's KL in the log is -ratio instead of -log ratio: -1 where nothing has moved."""
    output = right(outputs, batch, config)
    total, count = output.metrics["val/ratio"]
    return replace(output, metrics=output.metrics | {"policy/approxkl_avg": (-total, count)})


@in_the_loop("I5", "runtime.prompt_source:ratio_variance", four_tokens)
def variance_of_the_means(right: Any, metrics: dict[str, float]) -> float:
    """The variance of the ratio is one of micro-batch means: 0 for a single micro-batch, whatever
    its tokens do."""
    return pvariance([metrics["val/ratio"]])


@in_the_loop("H8", STEP, four_tokens, drift=25.0)
def clamped_before_it_is_logged(right: Any, outputs: Any, batch: Any, config: Any) -> Any:
    """A log-ratio of 25 nats is clamped to 10 for stability and logged so: a runaway looks like
    half of one."""
    old = batch.trajectory.old_logps
    near = outputs._replace(logps=old + (outputs.logps - old).clamp(-10, 10))
    name, output = "policy/approxkl_avg", right(outputs, batch, config)
    told = right(near, batch, config).metrics[name]
    return replace(output, metrics=output.metrics | {name: told})


# ---------------------------------------------------------------- the KL as a loss


def gradient_of_the_kl() -> list[Seen]:
    """Ten tokens drawn from p = (0.8, 0.2), eight and two of them, and a reference of (0.5, 0.5):
    the KL's gradient by the first logit is 0.16 ln 4."""
    first = torch.tensor(math.log(4), dtype=torch.float64, requires_grad=True)
    drawn = torch.tensor([0] * 8 + [1] * 2)
    table, batch = batch_of([[-1.0]] * 10)
    logps = torch.stack([first, torch.zeros_like(first)]).log_softmax(0)[drawn][:, None]
    zeros = torch.zeros_like(table)
    past = Trajectory(logps.detach(), zeros, zeros, zeros, zeros + math.log(0.5))
    outputs = ActorCriticOutput(logps, zeros, zeros[:, 0], zeros)
    config = PPOConfig(kl_coef=0.0, kl_loss_coef=1.0)
    told = LOSS.step(outputs, replace(batch, trajectory=past), config)
    (told.totals["tokens"] / 10).backward()
    assert first.grad is not None
    return [Seen("gradient of the KL term", 0.16 * math.log(4), first.grad.item())]


@in_the_loop("H5", "losses.ppo:kl_estimate", gradient_of_the_kl)
def k1_as_a_loss(right: Any, logps: Tensor, ref_logps: Tensor, *, kind: str) -> Any:
    """k1, an estimate of the KL, is differentiated as if its gradient were the KL's: on average it
    is 0."""
    return right(logps, ref_logps, kind="k1")


@in_the_loop("H5", "losses.ppo:kl_estimate", gradient_of_the_kl)
def k3_as_a_loss(right: Any, logps: Tensor, ref_logps: Tensor, *, kind: str) -> Any:
    """k3 likewise: its gradient is that of the KL the other way round, 0.3."""
    return right(logps, ref_logps, kind="k3")
