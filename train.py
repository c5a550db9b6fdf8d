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
    # Before the heavy imports below, so that --help and a typo answer at once, and a launcher's
    # early end is not missed.
    from runtime.cli import parse_or_exit
    from runtime.launch import die_with_launcher

    die_with_launcher()
    ARGS = parse_or_exit(sys.argv[1:])

import math
import signal
import time
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from data.errors import NOT_FINITE, InputError
from data.trees import TreeBatch
from losses import LOSSES
from losses.base import Loss
from models.save import final_of
from runtime.config import Args, Run, TrainConfig
from runtime.curves import draw_curves
from runtime.directory import RunDirectory
from runtime.launch import start_trackers
from runtime.metrics import Totals, step_means, with_means
from runtime.optimizer import make_optimizer
from runtime.report import (
    Progress,
    command,
    model_card,
    peak_memory,
    settings,
    table,
    versions,
)
from runtime.run import launch
from runtime.sources.base import Evaluation, Models, Plan
from runtime.sources.heldout import check_finite, check_start
from runtime.sources.prompts import plan_prompts
from runtime.sources.rows import plan_rows
from runtime.state import TrainState

NOT_FINITE_LIMIT = 3  # steps in a row

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
    began = time.perf_counter()
    config, loss = run.train, LOSSES[run.train.loss]
    set_seed(config.seed)

    # ---- plan: a bad row ends the run here, before any weight is loaded
    make_plan = plan_prompts if "rollouts" in loss.needs(run.loss) else plan_rows
    plan: Plan = make_plan(run, loss, accelerator)
    accelerator.print(*plan.summary, settings(run, accelerator.num_processes), sep="\n")
    if config.dry_run:
        accelerator.print(plan.preview())
        return

    # ---- load: the models, and the held-out metrics before the first update
    models = plan.load()
    accelerator.print(f"model: {models.description}")
    final = final_of(models.saved, config.model, plan.tokenizer, plan.end_tokens, config.save_dtype)
    optimizer = make_optimizer(
        models.trained,
        run.learning_rate,
        config.weight_decay,
        learning_rates=models.learning_rates,
    )
    trained, optimizer = accelerator.prepare(models.trained, optimizer)
    state = TrainState(rollout=plan.initial_rollout_state())
    feed = models.feed(trained, state, directory.path)
    before = feed.evaluate()
    check_start(before.metrics, loss.expected_initial_metrics(run.loss), config)

    # ---- everything has been checked: from here on the directory is this run's
    directory.begin(run_config(run, plan, models, accelerator.num_processes))
    start_trackers(accelerator, config)
    record_evaluation(state, directory, before)

    # ---- the loop: nothing but weights, optimizer and `state` changes from step to step
    progress = Progress(plan.steps, loss.name, enabled=accelerator.is_main_process)
    clock = time.perf_counter()
    for batches in feed.steps(start=state.step):
        # One step: the rates by the schedule, the gradient over all micro-batches and ranks, AdamW.
        state.step += 1
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(state.step, plan.steps, group["initial_lr"], config)
        units, metrics = optimizer_step(accelerator, trained, loss, run.loss, batches)
        grad_norm = update(accelerator, trained, optimizer, metrics["loss"], state, config)
        state.tokens += sum(batch.num_tokens for batch in batches if not batch.dummy)
        of_rollout = feed.after_step(metrics)
        now = time.perf_counter()
        state.seconds += now - clock

        # The log: means over all ranks, in full precision.
        record = {
            "step": state.step,
            "epoch": feed.epoch(state.step),
            **metrics,
            **of_rollout,
            "grad_norm": grad_norm,
            "learning_rate": learning_rate(state.step, plan.steps, run.learning_rate, config),
            **units,
            "seconds": now - began,
        }
        directory.log(record)
        accelerator.log(record, step=state.step)

        # Now and then, and after the last step: the held-out metrics.
        if config.eval_every and state.step % config.eval_every == 0 or state.step == plan.steps:
            found = record_evaluation(state, directory, feed.evaluate())
            accelerator.log(found, step=state.step)
            record |= found
        progress.show(state.step, record)
        clock = time.perf_counter()
    progress.close()
    if state.evaluated < state.step:  # fewer steps than planned: PPO's --target_kl
        accelerator.log(record_evaluation(state, directory, feed.evaluate()), step=state.step)

    # ---- what is left behind
    check_finite(state.heldout, f"after step {state.step}; try a lower --learning_rate")
    accelerator.wait_for_everyone()
    summary = summarize(run, accelerator, state, before.metrics, plan.data)
    summary["seconds"] = time.perf_counter() - began
    card = model_card(loss.name, config.model, summary)
    directory.finish(summary, final.save, card=card, draw=draw_curves)
    accelerator.end_training()
    accelerator.print(table(summary))
    made = f"final/ ({final.description}), metrics.jsonl, summary.json, curves.png"
    accelerator.print(f"{directory.path}: {made}")


def run_config(run: Run, plan: Plan, models: Models, processes: int) -> dict[str, Any]:
    """What config.json holds."""
    return {
        "command": command(),
        "train": asdict(run.train),
        "loss": asdict(run.loss),
        "origin": run.origin,
        "data": plan.data,
        "steps": plan.steps,
        "model": models.description,
        "layout": models.layout,
        "processes": processes,
        "versions": versions(),
    }


def update(
    accelerator: Accelerator,
    trained: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: float,
    state: TrainState,
    config: TrainConfig,
) -> float:
    """Clip the gradient and take the step, unless something is not finite; the gradient's norm.

    Raises:
        InputError: loss or gradient were not finite for NOT_FINITE_LIMIT steps in a row.
    """
    limit = config.max_grad_norm or math.inf
    grad_norm = float(accelerator.clip_grad_norm_(trained.parameters(), limit))
    finite = math.isfinite(grad_norm) and math.isfinite(loss)
    if finite or config.mixed_precision == "fp16":  # fp16's scaler skips by itself
        optimizer.step()
    optimizer.zero_grad()
    state.bad_steps = 0 if finite else state.bad_steps + 1
    if state.bad_steps == NOT_FINITE_LIMIT and config.mixed_precision != "fp16":
        raise InputError(
            f"loss or gradient not finite for {state.bad_steps} steps, the last one step"
            f" {state.step}; the weights are as before them; try a lower --learning_rate",
            NOT_FINITE,
        )
    return grad_norm


def record_evaluation(
    state: TrainState, directory: RunDirectory, evaluation: Evaluation
) -> dict[str, float]:
    """Log an evaluation after the present step; returns it by the names that were logged."""
    state.evaluated, state.heldout = state.step, evaluation.metrics
    found = {f"eval/{name}": value for name, value in evaluation.metrics.items()}
    directory.log({"step": state.step} | found)
    directory.log_samples(state.step, evaluation.samples)
    return found


def summarize(
    run: Run, accelerator: Accelerator, state: TrainState, before: dict[str, float], data: str
) -> dict[str, Any]:
    """What summary.json holds."""
    loss, rows = LOSSES[run.train.loss], state.step * run.train.batch_size
    tokens = torch.tensor(state.tokens, device=accelerator.device)
    return {
        "loss": loss.name,
        "model": run.train.model,
        "before": before,
        "after": state.heldout,
        "steps": state.step,
        "rows": rows,
        "unit": "pairs" if loss.responses_per_row == 2 else "rows",
        "tokens": int(accelerator.reduce(tokens, "sum")),
        "rows_per_second": rows / state.seconds,
        "peak_memory_bytes": peak_memory(accelerator.device),
        "data": data,
        "versions": versions(),
    }


def main(args: Args) -> int:
    """A run, from the parsed command line to the process's exit code."""
    return launch(train, args)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends a run as Ctrl-C does
    sys.exit(main(ARGS))
