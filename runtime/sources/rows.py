"""Batches from rows of a data set: what every loss without rollouts trains on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.batches import first_epoch, step_rows, total_steps
from data.prepared import DataSettings
from data.row_table import Row, RowTable
from data.splits import Split, StepRows
from data.token_cache import prepare_cached
from data.trees import Layout
from losses.base import Loss
from models.checkpoint import check_positions
from models.layout import choose_layout
from models.load import (
    check_tokenizer,
    check_vocabulary,
    load_causal_lm,
    load_scorer,
    load_tokenizer,
    parameters,
)
from runtime.checkpoints.identity import model_files, rows_hash
from runtime.config import Run, TrainConfig
from runtime.guards.limits import check_repeats
from runtime.sources.base import Evaluation
from runtime.sources.heldout import evaluate_rows
from runtime.sources.lm_harness import piqa_accuracy
from runtime.sources.reference import with_reference
from runtime.state import TrainState


@dataclass(frozen=True)
class RowPlan:
    """See `runtime.sources.base.Plan`."""

    run: Run
    loss: Loss
    accelerator: Accelerator
    tokenizer: PreTrainedTokenizerBase
    train: Split
    heldout: Split
    piqa: Sequence[Mapping[str, object]]  # the held-out rows as lm-eval takes them, for --lm_eval
    steps: int
    data: str
    summary: list[str]
    end_tokens: frozenset[int]

    def preview(self) -> str:
        return show_examples(self.train.rows, self.tokenizer)

    @cached_property
    def identity(self) -> dict[str, str]:
        hashes = {"data": rows_hash(split.table.digest for split in (self.train, self.heldout))}
        hashes["model"] = model_files(self.run.train.model)
        return hashes | {"ref_model": model_files(getattr(self.run.loss, "ref_model", None))}

    def initial_rollout_state(self) -> None:
        return None

    def load(self) -> RowModels:
        config = self.run.train
        options: Any = {
            "dtype": config.dtype,
            "gradient_checkpointing": config.gradient_checkpointing,
        }
        if self.loss.task == "seq_cls":
            model = load_scorer(config.model, self.tokenizer, seed=config.seed, **options)
        else:
            model = load_causal_lm(config.model, **options)
        token_ids = self.train.table.token_ids | self.heldout.table.token_ids
        check_vocabulary(model, token_ids, f"--model {config.model}")
        model.to(self.accelerator.device)
        name = f"--model {config.model}"
        layout, trained, how = choose_layout(model, config.layout, self.loss.task, name)
        description = f"{config.model}, {parameters(model)}, {how}"
        return RowModels(self, trained, model, layout, description)


@dataclass(frozen=True)
class RowModels:
    """See `runtime.sources.base.Models`."""

    plan: RowPlan
    trained: nn.Module
    saved: PreTrainedModel
    layout: Layout
    description: str
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    beside: Mapping[str, PreTrainedModel] = field(default_factory=dict)

    def feed(self, trained: nn.Module, state: TrainState, directory: Path) -> RowFeed:
        plan, config = self.plan, self.plan.run.train
        train, heldout = (replace(x, layout=self.layout) for x in (plan.train, plan.heldout))
        if "reference" in plan.loss.needs(plan.run.loss):
            train, heldout = with_reference(
                plan.accelerator,
                trained,
                config,
                plan.run.loss.ref_model,
                train,
                first_epoch(len(train.rows), config.batch_size, config.seed, plan.steps),
                heldout,
                directory / "reference.safetensors",
            )
        return RowFeed(plan, self, trained, train, heldout)


@dataclass(frozen=True)
class RowFeed:
    """See `runtime.sources.base.Feed`."""

    plan: RowPlan
    models: RowModels
    policy: nn.Module
    train: Split
    heldout: Split

    def steps(self, start: int) -> Iterator[StepRows]:
        config, accelerator = self.plan.run.train, self.plan.accelerator
        ranks, rank = accelerator.num_processes, accelerator.process_index
        for step in range(start + 1, self.plan.steps + 1):
            rows = step_rows(step, len(self.train.rows), config.batch_size, config.seed)
            yield StepRows(self.train, rows, ranks, rank)

    def after_step(self, metrics: dict[str, float]) -> dict[str, float]:
        return {}

    def epoch(self, step: int) -> float:
        return step * self.plan.run.train.batch_size / len(self.train.rows)

    def evaluate(self) -> Evaluation:
        plan, config = self.plan, self.plan.run.train
        metrics = evaluate_rows(
            plan.accelerator,
            self.policy,
            plan.loss,
            plan.run.loss,
            self.heldout,
            config.max_tokens,
        )
        if config.lm_eval:
            metrics |= piqa_accuracy(
                self.models.saved,
                plan.tokenizer,
                plan.piqa,
                batch_size=max(1, min(16, config.max_tokens // max(self.heldout.lengths))),
                accelerator=plan.accelerator,
            )
        return Evaluation(metrics, [])


def plan_rows(run: Run, loss: Loss, accelerator: Accelerator) -> RowPlan:
    """Read and check both splits.

    Raises:
        InputError: naming file, line, column and reason.
    """
    config = run.train
    tokenizer = load_tokenizer(config.model, chat_template=config.chat_template)
    prepared = prepare_cached(data_settings(config, loss), tokenizer)
    tables = (prepared.train, prepared.heldout)
    train, heldout = (
        Split(table, packing=loss.packing(run.loss), columns=row_columns(table, loss))
        for table in tables
    )
    longest = max(table.longest() for table in tables)
    check_length = partial(check_positions, longest, config.max_length)
    check_length(config.model, "--model")
    if "reference" in loss.needs(run.loss) and run.loss.ref_model is not None:
        check_tokenizer(
            run.loss.ref_model, tokenizer, train.table.token_ids | heldout.table.token_ids
        )
        check_length(run.loss.ref_model, "--ref_model")
    rows = len(train.rows)
    steps = total_steps(rows, config.batch_size, config.epochs, config.max_steps)
    summary = [
        *prepared.lines,
        f"plan: {steps} optimizer steps of {config.batch_size} rows,"
        f" {steps * config.batch_size / rows:.2f} epochs",
    ]
    check_repeats("--batch_size", config.batch_size, rows)
    if config.batch_size > rows:
        summary.append(
            f"a step of {config.batch_size} rows takes some of the {rows} more than once"
        )
    return RowPlan(
        run,
        loss,
        accelerator,
        tokenizer,
        train,
        heldout,
        prepared.piqa,
        steps,
        prepared.lines[0].removeprefix("data: "),
        summary,
        prepared.end_tokens,
    )


def data_settings(config: TrainConfig, loss: Loss) -> DataSettings:
    """What of a run decides its tokens."""
    return DataSettings(
        config.data,
        config.eval_data,
        responses=loss.responses_per_row,
        reading=config.reading,
        seed=config.seed,
        max_length=config.max_length,
        overlong=config.overlong,
        piqa=config.lm_eval,
    )


def row_columns(rows: RowTable, loss: Loss) -> dict[str, torch.Tensor]:
    """What the loss reads of a row beside its tokens, (S,): the same for each of its responses."""
    names = [name for name in loss.reads if name in Row.__dataclass_fields__]
    return {name: torch.from_numpy(rows.repeated(name)).float() for name in names}


def show_examples(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, count: int = 2) -> str:
    """The first rows decoded, trained tokens between bars; the prompt is not trained on."""
    lines = []
    for number, row in enumerate(rows[:count], 1):
        lines.append(f"example {number}: prompt of {len(row.prompt)} tokens, not trained on")
        lines.append(f"    {tokenizer.decode(row.prompt)!r}")
        names = ("chosen", "rejected") if len(row.responses) > 1 else ("response",)
        masks = row.masks or [[True] * len(response) for response in row.responses]
        for name, response, mask, whole in zip(names, row.responses, masks, row.ends, strict=True):
            end = "" if whole else ", cut, so without an end token"
            lines.append(f"  {name}: {sum(mask)} trained tokens{end}")
            for trained, run in groupby(zip(response, mask, strict=True), key=lambda t: t[1]):
                ids = [token for token, _ in run]
                tokens = "|".join(str(tokenizer.decode([token])) for token in ids)
                text = f"|{tokens}|" if trained else f"not trained: {tokenizer.decode(ids)}"
                lines.append(f"    {text}".replace("\n", "\\n"))
    return "\n".join(lines)
