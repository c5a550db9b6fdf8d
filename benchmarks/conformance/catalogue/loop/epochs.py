"""The optimizer steps of a rollout: how many, over which rows, against which old log-probs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from benchmarks.conformance.catalogue.loop.base import Seen, in_the_loop
from benchmarks.conformance.catalogue.loop.experience import PLAIN
from benchmarks.conformance.catalogue.loop.rollouts import trained
from losses.ppo import PPOConfig

STEPS = "rollout.steps:rollout_steps"


def two_epochs() -> list[Seen]:
    """Four responses, two a step, two epochs: four steps at a rate of 0.05, then the rollout is
    used up."""
    run = trained(PPOConfig(**PLAIN))
    epochs = [sorted(sum(run.rows[i : i + 2], [])) for i in range(0, len(run.rows), 2)]
    old = [all(logps == run.sampled[i] for i, logps in step.items()) for step in run.old_logps]
    seen = [
        Seen("optimizer steps", 4, len(run.rows)),
        Seen("rows of each epoch", [[0, 1, 2, 3]] * 2, epochs),
        Seen("old log-probs are the rollout's", [True] * 4, old),
        Seen("val/ratio in the first step", 1.0, run.metrics[0]["val/ratio"]),
    ]
    if len(run.metrics) > 1:
        moved = run.metrics[1]["val/ratio_minus_1_squared"] > 1e-12
        seen.append(Seen("val/ratio moves in the second step", True, moved))
    return seen


@in_the_loop("F12", STEPS, two_epochs)
def last_batch_thrown_away(right: Any, *args: Any, **options: Any) -> Iterator[Any]:
    """The last batch of a rollout is dropped: half of what was sampled here is never trained on."""
    for number, batches in enumerate(right(*args, **options)):
        if number % 2 == 0:
            yield batches


@in_the_loop("F13", STEPS, two_epochs)
def epochs_never_read(right: Any, rollouts: Any, *args: Any, steps: int, **options: Any) -> Any:
    """ppo_epochs is in the configuration and nobody loops: every rollout is used once."""
    once = replace(rollouts, config=replace(rollouts.config, ppo_epochs=1))
    return right(once, *args, steps=steps // 2, **options)


@in_the_loop("F14", STEPS, two_epochs)
def one_step_an_epoch(right: Any, *args: Any, **options: Any) -> Iterator[Any]:
    """The mini-batches of an epoch are accumulated into one optimizer step: half as many updates,
    and none off the rollout's own weights within an epoch."""
    waiting: list[Any] = []
    for batches in right(*args, **options):
        waiting += batches
        if len(waiting) == 2:
            yield waiting
            waiting = []


@in_the_loop("F15", "rollout.steps:_batch", two_epochs)
def ratio_to_the_reference(right: Any, *args: Any) -> Any:
    """The ratio's denominator is the reference model, not the policy that sampled."""
    batch = right(*args)
    old = replace(batch.trajectory, old_logps=batch.trajectory.ref_logps)
    return replace(batch, trajectory=old)


@in_the_loop("H13", "losses.ppo:LOSS.step", two_epochs)
def old_log_probs_of_the_moment(right: Any, outputs: Any, batch: Any, config: Any) -> Any:
    """The "old" log-probs are the current forward's: the ratio stays 1 and nothing is clipped."""
    old = replace(batch.trajectory, old_logps=outputs.logps.detach())
    return right(outputs, replace(batch, trajectory=old), config)
