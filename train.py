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
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from data.batches import split, step_rows, total_steps
from data.errors import NOT_FINITE, InputError
from data.trees import TreeBatch
from losses import LOSSES
from losses.base import Loss
from runtime.cli import Args
from runtime.config import TrainConfig
from runtime.directory import RunDirectory
from runtime.heldout import check_finite, check_start, evaluate
from runtime.inputs import Rows, load_rows, show_examples
from runtime.launch import start_trackers
from runtime.layout import choose_layout
from runtime.metrics import Totals
from runtime.models import (
    check_tokenizer,
    check_vocabulary,
    load_causal_lm,
    load_scorer,
    load_tokenizer,
    make_optimizer,
    parameters,
)
from runtime.outcome import launch
from runtime.reference import with_reference
from runtime.report import Progress, command, draw_curves, model_card, table, versions

NOT_FINITE_LIMIT = 3  # steps in a row

# ------------------------------------------------------------------------------ one step


def batch_steps(
    data: Rows, steps: int, config: TrainConfig, accelerator: Accelerator
) -> Iterator[list[TreeBatch]]:
    """This rank's micro-batches of every optimizer step; the loop knows no more of the data."""
    assert config.batch_size is not None
    lengths = data.lengths
    for step in range(1, steps + 1):
        rows = step_rows(step, len(lengths), config.batch_size, config.seed)
        plan = split([lengths[i] for i in rows], accelerator.num_processes, config.max_tokens)
        mine = plan[accelerator.process_index]
        yield [data.batch([rows[p] for p in part], accelerator.device) for part in mine]


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
    tokenizer = load_tokenizer(config.model)
    train_rows, heldout_rows, told = load_rows(config, loss, loss_config, tokenizer)
    used = train_rows.tokens | heldout_rows.tokens
    if loss.needs_reference and loss_config.ref_model is not None:
        check_tokenizer(loss_config.ref_model, tokenizer, used)
    steps = total_steps(len(train_rows.rows), config.batch_size, config.epochs, config.max_steps)
    say(*told, sep="\n")
    say(
        f"plan: {steps} optimizer steps of {config.batch_size} rows,"
        f" {steps * config.batch_size / len(train_rows.rows):.2f} epochs,"
        f" learning rate {config.learning_rate:g} {config.schedule},"
        f" {accelerator.num_processes} process{'es' * (accelerator.num_processes > 1)}"
    )
    if config.dry_run:
        say(show_examples(train_rows.rows, tokenizer))
        return

    # ---- model
    options: Any = {
        "dtype": config.dtype,
        "gradient_checkpointing": config.gradient_checkpointing,
    }
    if loss.model == "score":
        model = load_scorer(config.model, tokenizer, seed=config.seed, **options)
    else:
        model = load_causal_lm(config.model, **options)
    check_vocabulary(model, used, f"--model {config.model}")
    model.to(accelerator.device)
    layout, policy, told_layout = choose_layout(model, config.layout, loss.model)
    train_rows, heldout_rows = (replace(r, layout=layout) for r in (train_rows, heldout_rows))
    say(f"model: {config.model}, {parameters(model)}, {told_layout}")
    optimizer = make_optimizer(model, config.learning_rate, config.weight_decay)
    policy, optimizer = accelerator.prepare(policy, optimizer)

    # ---- reference: its log-probs, taken while the policy still is the reference
    if loss.needs_reference:
        train_rows, heldout_rows = with_reference(
            accelerator,
            policy,
            config,
            loss_config.ref_model,
            (train_rows, heldout_rows),
            directory.path / "reference.safetensors",
        )
    history = [evaluate(accelerator, policy, loss, loss_config, heldout_rows, config.max_tokens)]
    check_start(history[0], loss.at_start(loss_config), config)

    # ---- everything has been checked: from here on the directory is this run's
    directory.begin(
        {
            "command": command(),
            "train": asdict(config),
            "loss": asdict(loss_config),
            "origin": origin,
            "data": told[0].removeprefix("data: "),
            "steps": steps,
            "layout": layout,
            "processes": accelerator.num_processes,
            "versions": versions(),
        }
    )
    start_trackers(accelerator, config)
    directory.log({"step": 0} | {f"eval/{k}": v for k, v in history[0].items()})

    # ---- the loop
    progress = Progress(steps, loss.name, enabled=accelerator.is_main_process)
    tokens = bad_steps = 0
    training_seconds = 0.0
    for step, batches in enumerate(batch_steps(train_rows, steps, config, accelerator), start=1):
        clock = time.perf_counter()
        rate = learning_rate(step, steps, config)
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

        training_seconds += time.perf_counter() - clock
        tokens += sum(batch.num_tokens for batch in batches if not batch.dummy)
        record = {
            "step": step,
            "epoch": step * config.batch_size / len(train_rows.rows),
            **metrics,
            "grad_norm": grad_norm,
            "learning_rate": rate,
            **units,
            "seconds": time.perf_counter() - began,
        }
        directory.log(record)
        accelerator.log(record, step=step)
        if config.eval_every and step % config.eval_every == 0 or step == steps:
            history.append(
                evaluate(accelerator, policy, loss, loss_config, heldout_rows, config.max_tokens)
            )
            evaluation = {f"eval/{k}": v for k, v in history[-1].items()}
            directory.log({"step": step} | evaluation)
            accelerator.log(evaluation, step=step)
            record |= evaluation
        progress.show(step, record)

    # ---- what is left behind
    check_finite(history[-1], f"after step {steps}; try a lower --learning_rate")
    accelerator.wait_for_everyone()
    all_tokens = int(accelerator.reduce(torch.tensor(tokens, device=accelerator.device), "sum"))
    summary = {
        "loss": loss.name,
        "model": config.model,
        "before": history[0],
        "after": history[-1],
        "steps": steps,
        "rows": steps * config.batch_size,
        "unit": "pairs" if loss.branches == 2 else "rows",
        "tokens": all_tokens,
        "seconds": time.perf_counter() - began,
        "rows_per_second": steps * config.batch_size / training_seconds,
        "data": told[0].removeprefix("data: "),
        "versions": versions(),
    }
    directory.finish(
        summary,
        model,
        tokenizer,
        card=model_card(loss.name, config.model, summary),
        draw=draw_curves,
    )
    accelerator.end_training()
    say(table(summary))
    say(f"{directory.path}: final/ (the model), metrics.jsonl, summary.json, curves.png")


def main(args: Args) -> int:
    """A run, from the parsed command line to the process's exit code."""
    return launch(train, args)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends a run as Ctrl-C does
    sys.exit(main(ARGS))
