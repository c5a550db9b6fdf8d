"""Train a model with one of the losses in losses/, in one plain Accelerate loop.

    accelerate launch train.py --loss dpo
    python train.py --loss dpo --model HuggingFaceTB/SmolLM2-135M --data piqa

A loss sees one micro-batch at a time and returns a *sum* over its units (tokens or pairs). The
only division is in `optimizer_step`, by the units of the whole step over all micro-batches and
ranks, so that the gradient is the same however the step is cut.

Not here: padding (data/trees.py), a resident reference model (runtime/reference.py), callbacks, and
Accelerate's own gradient accumulation, whose divisions would come on top of ours.
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
from runtime.cli import Args
from runtime.config import TrainConfig
from runtime.directory import RunDirectory
from runtime.heldout import check_finite, check_start
from runtime.launch import start_trackers
from runtime.metrics import Totals
from runtime.models import make_optimizer
from runtime.outcome import launch
from runtime.prompt_source import PromptSource
from runtime.report import (
    Progress,
    command,
    draw_curves,
    model_card,
    opening,
    peak_memory,
    table,
    versions,
)
from runtime.row_source import RowSource
from runtime.source import Source

NOT_FINITE_LIMIT = 3  # steps in a row

# ------------------------------------------------------------------------------ one step


def optimizer_step(
    accelerator: Accelerator, policy: nn.Module, loss: Loss, config: Any, batches: list[TreeBatch]
) -> tuple[dict[str, int], dict[str, float]]:
    """Add one optimizer step's gradient: that of (sum of the losses) / (number of units), exactly.

    Returns the number of units and the metrics, both over all ranks.
    """
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


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Learning rate of optimizer step `step` (1 is the first): linear warm-up, then the schedule.

    No step has rate 0: without warm-up the first step has the full rate, and the last some of it.
    """
    assert config.learning_rate is not None
    warmup = round(config.warmup * steps) if config.warmup < 1 else int(config.warmup)
    if step <= warmup:
        return config.learning_rate * step / (warmup + 1)
    left = (steps - step + 1) / max(steps - warmup, 1)  # 1 right after the warm-up, then falling
    shape = {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}
    return config.learning_rate * shape[config.schedule]


# ------------------------------------------------------------------------------ a run


def train(args: Args, accelerator: Accelerator, directory: RunDirectory) -> None:
    """From the flags to the saved model."""
    began = time.perf_counter()
    loss, config, origin = LOSSES[args.config.loss], args.config, args.origin
    loss_config = loss.config(**args.loss_flags)
    assert config.batch_size is not None and config.learning_rate is not None
    say = accelerator.print
    set_seed(config.seed)

    # ---- data: a bad row ends the run here, before any weight is loaded
    kind = PromptSource if loss.model == "actor_critic" else RowSource
    source: Source = kind(config, loss, loss_config, accelerator)
    say(*source.told, sep="\n")
    say(opening(args, accelerator.num_processes))
    if config.dry_run:
        say(source.preview())
        return

    # ---- models, and what is taken from them while the policy is as it was
    policy, told = source.load()
    say(f"model: {told}")
    optimizer = make_optimizer(policy, config.learning_rate, config.weight_decay)
    policy, optimizer = accelerator.prepare(policy, optimizer)
    source.start(policy, directory.path)
    history = [source.evaluate()]
    check_start(history[0], loss.expected_initial_metrics(loss_config), config)

    # ---- everything has been checked: from here on the directory is this run's
    directory.begin(
        {
            "command": command(),
            "train": asdict(config),
            "loss": asdict(loss_config),
            "origin": origin,
            "data": source.data,
            "steps": source.steps,
            "model": told,
            "layout": source.layout,
            "processes": accelerator.num_processes,
            "versions": versions(),
        }
    )
    start_trackers(accelerator, config)
    directory.log({"step": 0} | eval_record(history[0]))
    directory.log_samples(0, source.samples)

    # ---- the loop
    progress = Progress(source.steps, loss.name, enabled=accelerator.is_main_process)
    step = evaluated = tokens = bad_steps = 0
    loop_began, evaluating = time.perf_counter(), 0.0

    def evaluate() -> dict[str, float]:
        nonlocal evaluated, evaluating
        clock = time.perf_counter()
        history.append(source.evaluate())
        evaluated, evaluating = step, evaluating + time.perf_counter() - clock
        found = eval_record(history[-1])
        directory.log({"step": step} | found)
        directory.log_samples(step, source.samples)
        accelerator.log(found, step=step)
        return found

    for step, batches in enumerate(source.batches(), start=1):
        rate = learning_rate(step, source.steps, config)
        for group in optimizer.param_groups:
            group["lr"] = rate
        units, metrics = optimizer_step(accelerator, policy, loss, loss_config, batches)
        limit = config.max_grad_norm or math.inf
        grad_norm = float(accelerator.clip_grad_norm_(policy.parameters(), limit))
        finite = math.isfinite(grad_norm) and math.isfinite(metrics["loss"])
        if finite or config.mixed_precision == "fp16":  # fp16's scaler skips by itself
            optimizer.step()
        optimizer.zero_grad()
        bad_steps = 0 if finite else bad_steps + 1
        if bad_steps == NOT_FINITE_LIMIT and config.mixed_precision != "fp16":
            raise InputError(
                f"loss or gradient not finite for {bad_steps} steps, the last one step {step};"
                " the weights are as before them; try a lower --learning_rate",
                NOT_FINITE,
            )

        tokens += sum(batch.num_tokens for batch in batches if not batch.dummy)
        record = {
            "step": step,
            "epoch": source.epoch(step),
            **metrics,
            **source.after_step(metrics),
            "grad_norm": grad_norm,
            "learning_rate": rate,
            **units,
            "seconds": time.perf_counter() - began,
        }
        directory.log(record)
        accelerator.log(record, step=step)
        if config.eval_every and step % config.eval_every == 0 or step == source.steps:
            record |= evaluate()
        progress.show(step, record)
    progress.close()
    if evaluated < step:  # the source had fewer steps than planned: PPO's --target_kl
        evaluate()

    # ---- what is left behind
    check_finite(history[-1], f"after step {step}; try a lower --learning_rate")
    seconds = time.perf_counter() - loop_began - evaluating
    accelerator.wait_for_everyone()
    all_tokens = int(accelerator.reduce(torch.tensor(tokens, device=accelerator.device), "sum"))
    summary = {
        "loss": loss.name,
        "model": config.model,
        "before": history[0],
        "after": history[-1],
        "steps": step,
        "rows": step * config.batch_size,
        "unit": "pairs" if loss.responses_per_row == 2 else "rows",
        "tokens": all_tokens,
        "seconds": time.perf_counter() - began,
        "rows_per_second": step * config.batch_size / seconds,
        "peak_memory_bytes": peak_memory(accelerator.device),
        "data": source.data,
        "versions": versions(),
    }
    directory.finish(
        summary,
        source.model,
        source.tokenizer,
        card=model_card(loss.name, config.model, summary),
        draw=draw_curves,
    )
    accelerator.end_training()
    say(table(summary))
    say(f"{directory.path}: final/ (the model), metrics.jsonl, summary.json, curves.png")


def eval_record(metrics: dict[str, float]) -> dict[str, float]:
    """Held-out metrics under the names that they are logged by."""
    return {f"eval/{name}": value for name, value in metrics.items()}


def main(args: Args) -> int:
    """A run, from the parsed command line to the process's exit code."""
    return launch(train, args)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends a run as Ctrl-C does
    sys.exit(main(ARGS))
