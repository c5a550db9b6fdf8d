"""Batches from rows of a data set: what sft, reward, dpo and orpo train on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from data.batches import micro_batches, step_rows, total_steps
from data.trees import TreeBatch
from losses.base import Loss
from runtime.config import TrainConfig
from runtime.harness import piqa_accuracy
from runtime.heldout import evaluate
from runtime.inputs import load_rows, show_examples
from runtime.layout import choose_layout
from runtime.models import (
    check_tokenizer,
    check_vocabulary,
    load_causal_lm,
    load_scorer,
    load_tokenizer,
    parameters,
)
from runtime.reference import with_reference


class RowSource:
    """See `runtime.source.Source`."""

    samples: list[dict[str, Any]] = []

    def __init__(
        self, config: TrainConfig, loss: Loss, loss_config: Any, accelerator: Accelerator
    ) -> None:
        self.config, self.loss, self.loss_config = config, loss, loss_config
        self.accelerator = accelerator
        self.tokenizer = load_tokenizer(config.model)
        self.train, self.heldout, told = load_rows(config, loss, loss_config, self.tokenizer)
        self.used = self.train.tokens | self.heldout.tokens
        if loss.needs_reference and loss_config.ref_model is not None:
            check_tokenizer(loss_config.ref_model, self.tokenizer, self.used)
        assert config.batch_size is not None
        self.batch_size, rows = config.batch_size, len(self.train.rows)
        self.steps = total_steps(rows, self.batch_size, config.epochs, config.max_steps)
        self.data = told[0].removeprefix("data: ")
        self.told = [
            *told,
            f"plan: {self.steps} optimizer steps of {self.batch_size} rows,"
            f" {self.epoch(self.steps):.2f} epochs",
        ]

    def epoch(self, step: int) -> float:
        return step * self.batch_size / len(self.train.rows)

    def preview(self) -> str:
        return show_examples(self.train.rows, self.tokenizer)

    def load(self) -> tuple[nn.Module, str]:
        config = self.config
        options: Any = {
            "dtype": config.dtype,
            "gradient_checkpointing": config.gradient_checkpointing,
        }
        if self.loss.model == "score":
            model = load_scorer(config.model, self.tokenizer, seed=config.seed, **options)
            kind: Any = "score"
        else:
            model, kind = load_causal_lm(config.model, **options), "logps"
        check_vocabulary(model, self.used, f"--model {config.model}")
        model.to(self.accelerator.device)
        layout, policy, told = choose_layout(model, config.layout, kind)
        self.train, self.heldout = (replace(r, layout=layout) for r in (self.train, self.heldout))
        self.model, self.layout = model, layout
        return policy, f"{config.model}, {parameters(model)}, {told}"

    def start(self, policy: nn.Module, directory: Path) -> None:
        self.policy = policy
        if self.loss.needs_reference:
            self.train, self.heldout = with_reference(
                self.accelerator,
                policy,
                self.config,
                self.loss_config.ref_model,
                (self.train, self.heldout),
                directory / "reference.safetensors",
            )

    def batches(self) -> Iterator[list[TreeBatch]]:
        lengths, ranks = self.train.lengths, self.accelerator.num_processes
        for step in range(1, self.steps + 1):
            rows = step_rows(step, len(lengths), self.batch_size, self.config.seed)
            plan = micro_batches([lengths[i] for i in rows], ranks, self.config.max_tokens)
            mine = plan[self.accelerator.process_index]
            device = self.accelerator.device
            yield [self.train.batch([rows[p] for p in part], device) for part in mine]

    def after_step(self, metrics: dict[str, float]) -> dict[str, float]:
        return {}

    def evaluate(self) -> dict[str, float]:
        found = evaluate(
            self.accelerator,
            self.policy,
            self.loss,
            self.loss_config,
            self.heldout,
            self.config.max_tokens,
        )
        if self.config.lm_eval:
            found |= piqa_accuracy(
                self.model,
                self.tokenizer,
                self.heldout.piqa,
                batch_size=max(1, min(16, self.config.max_tokens // max(self.heldout.lengths))),
                accelerator=self.accelerator,
            )
        return found
