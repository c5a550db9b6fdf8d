"""Train a model with one of the losses in losses/, in one plain Accelerate loop.

    accelerate launch train.py --loss dpo
    python train.py --loss dpo --model HuggingFaceTB/SmolLM2-135M --data piqa

A loss sees one micro-batch at a time and returns a *sum* over its units (tokens or pairs). The
only division is in `optimizer_step`, by the units of the whole step over all micro-batches and
ranks, so that the gradient is the same however the step is cut.

Not here: padding (data/trees.py), a resident reference model (runtime/sources/reference.py),
callbacks, and Accelerate's own gradient accumulation, whose divisions would come on top of ours.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    # Before the heavy imports below, so that --help and a typo answer at once, a signal is obeyed
    # from the first moment, a launcher's early end is not missed, and torch's threads know.
    from runtime.cli import parse_or_exit
    from runtime.launch import die_with_launcher
    from runtime.process.signals import SIGNALLED
    from runtime.process.threads import sleep_while_waiting

    SIGNALLED.listen(to_the_end=True)
    sleep_while_waiting()
    die_with_launcher()
    ARGS = parse_or_exit(sys.argv[1:])

import math
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from data.splits import StepRows
from data.trees import TreeBatch
from losses import LOSSES
from losses.base import Loss
from runtime.config import Args, Run, TrainConfig
from runtime.directory import RunDirectory
from runtime.guards.finite import clip_gradient, count_skipped, jumped, not_finite
from runtime.guards.memory import with_less
from runtime.guards.outputs import say
from runtime.metrics import Totals, step_means, with_means
from runtime.optimizer import make_optimizer
from runtime.report import settings
from runtime.run import launch
from runtime.session.preflight import check_unchanged, check_warmup, preflight
from runtime.session.session import Session
from runtime.sources.base import Plan
from runtime.sources.prompts import plan_prompts
from runtime.sources.rows import plan_rows
from runtime.state import TrainState

# ------------------------------------------------------------------------------ one step


def optimizer_step(
    accelerator: Accelerator, policy: nn.Module, loss: Loss, config: Any, batches: list[TreeBatch]
) -> tuple[dict[str, int], dict[str, float]]:
    """Add one optimizer step's gradient: that of (sum of the losses) / (number of units), exactly.

    Returns the number of units and the metrics, both over all ranks.
    """
    means = step_means(accelerator, policy, loss, config, batches)
    batches = [with_means(batch, means) for batch in batches]
    for batch in batches:
        loss.check_columns(batch)
    units = count_units(accelerator, loss, config, batches)
    totals = Totals()
    for batch in batches:
        # Gradients travel between ranks once, with the last micro-batch.
        with nullcontext() if batch is batches[-1] else accelerator.no_sync(policy):
            output = loss.step(policy(batch), batch, config)
            # DDP averages over ranks, hence their number. A dummy runs backward too: the other
            # ranks wait for its gradient, which is 0.
            scale = 0 if batch.dummy else accelerator.num_processes
            parts = [total * (scale / units[unit]) for unit, total in output.totals.items()]
            accelerator.backward(torch.stack(parts).sum())
        totals.add_loss(output.totals, loss.units(batch, config), dummy=batch.dummy)
        totals.add(output.metrics, dummy=batch.dummy)
    return units, totals.reduce(accelerator)


def count_units(
    accelerator: Accelerator, loss: Loss, config: Any, batches: list[TreeBatch]
) -> dict[str, int]:
    """What the losses of a whole step are divided by; known from the masks, before any forward."""
    counts = [loss.units(batch, config) for batch in batches]
    local = [
        sum(count[unit] for count, batch in zip(counts, batches, strict=True) if not batch.dummy)
        for unit in counts[0]
    ]
    everywhere = accelerator.reduce(torch.tensor(local, device=accelerator.device), "sum")
    return dict(zip(counts[0], everywhere.tolist(), strict=True))


def learning_rate(step: int, steps: int, peak: float, config: TrainConfig) -> float:
    """Learning rate of optimizer step `step` (1 is the first): linear warm-up, then the schedule.

    No step has rate 0: without warm-up the first step has the full rate, and the last some of it.
    """
    warmup = round(config.warmup * steps) if config.warmup < 1 else int(config.warmup)
    if step <= warmup:
        return peak * step / (warmup + 1)
    left = (steps - step + 1) / max(steps - warmup, 1)  # 1 right after the warm-up, then falling
    shape = {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}
    return peak * shape[config.schedule]


# ------------------------------------------------------------------------------ a run


def train(run: Run, accelerator: Accelerator, directory: RunDirectory) -> None:
    """From the flags to the saved model."""
    config, loss = run.train, LOSSES[run.train.loss]
    set_seed(config.seed)

    # ---- plan: a bad row ends the run here, before any weight is loaded
    make_plan = plan_prompts if "rollouts" in loss.needs(run.loss) else plan_rows
    plan: Plan = make_plan(run, loss, accelerator)
    check_warmup(run, plan.steps)
    say(*plan.summary, settings(run, accelerator.num_processes))
    if config.dry_run:
        say(plan.preview(), *preflight(run))
        return
    check_unchanged(run, plan, accelerator.num_processes, directory)

    # ---- load: the models, the optimizer, and what gives the batches
    models = plan.load()
    say(f"model: {models.description}")
    optimizer = make_optimizer(
        models.trained, run.learning_rate, config.weight_decay, learning_rates=models.learning_rates
    )
    trained, optimizer = accelerator.prepare(models.trained, optimizer)
    state = TrainState(rollout=plan.initial_rollout_state(), max_tokens=config.max_tokens)
    feed = models.feed(trained, state, directory.path)
    session = Session(run, accelerator, directory, plan, models, optimizer, feed, state)
    if not session.begin():
        return

    # ---- the loop: nothing but weights, optimizer and `state` changes from step to step
    for rows in session.steps():
        set_seed(config.seed + state.step)  # of the global generators, for rewards that draw
        # The gradient over all micro-batches and ranks; with smaller ones where memory is short.
        found, state.max_tokens = with_less(
            partial(step_gradient, accelerator, trained, loss, run.loss, rows),
            state.max_tokens,
            ranks=accelerator.num_processes,
            undo=optimizer.zero_grad,
            say=say,
        )
        batches, units, metrics = found
        session.meet(batches)

        # AdamW by the schedule, and the log: a checkpoint has all of this step or none of it.
        with session.changing():
            state.step += 1
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(state.step, plan.steps, group["initial_lr"], config)
            grad_norm = update(accelerator, trained, optimizer, metrics, state, config, rows)
            rate = learning_rate(state.step, plan.steps, run.learning_rate, config)
            session.log_step(metrics, {"grad_norm": grad_norm, "learning_rate": rate}, units)
    session.finish()


def step_gradient(
    accelerator: Accelerator,
    policy: nn.Module,
    loss: Loss,
    config: Any,
    rows: StepRows,
    max_tokens: int,
) -> tuple[list[TreeBatch], dict[str, int], dict[str, float]]:
    """`optimizer_step` over a step's rows, in micro-batches of at most `max_tokens`."""
    batches = rows.batches(max_tokens, accelerator.device)
    return batches, *optimizer_step(accelerator, policy, loss, config, batches)


def update(
    accelerator: Accelerator,
    trained: nn.Module,
    optimizer: torch.optim.Optimizer,
    metrics: dict[str, float],
    state: TrainState,
    config: TrainConfig,
    rows: StepRows,
) -> float:
    """Clip the gradient and take the step, unless a number is not finite; the gradient's norm.

    Raises:
        InputError: too many steps were left out; see runtime/guards/finite.py.
    """
    accelerator.unscale_gradients()
    grad_norm, wrong = clip_gradient(trained.named_parameters(), config.max_grad_norm or math.inf)
    wrong = not_finite(metrics) or wrong
    jump = "" if wrong else jumped(state, metrics["loss"], grad_norm, config.spike_guard)
    fp16 = config.mixed_precision == "fp16"
    if fp16 or not (wrong or jump):  # fp16's scaler skips by itself, and lowers its scale
        optimizer.step()
    optimizer.zero_grad()
    if jump:
        say(f"step {state.step} skipped: {jump}; its rows: {rows.names()}")
        state.skipped += 1
    elif not wrong:
        state.bad_steps = 0
    elif fp16:
        state.skipped += 1
    else:
        say(f"step {state.step} skipped: not finite: {wrong}; its rows: {rows.names()}")
        count_skipped(state, wrong, rows.names())
    return grad_norm


def main(args: Args) -> int:
    """A run, from the parsed command line to the process's exit code."""
    return launch(train, args)


if __name__ == "__main__":
    sys.exit(main(ARGS))
