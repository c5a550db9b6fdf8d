"""What the loop asks of whatever gives it batches; it knows no more of where they are from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.trees import Layout, TreeBatch


class Source(Protocol):
    """Made from the flags, with all data checked; then `load`, `start`, and the loop."""

    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel  # what final/ will hold
    layout: Layout  # of its batches, once loaded
    steps: int  # optimizer steps planned
    data: str  # one line on where the data is from
    told: list[str]  # what to tell the user before any weight is loaded
    samples: list[dict[str, Any]]  # what the last evaluation sampled

    def preview(self) -> str:
        """Examples, as the model will see them."""

    def load(self) -> tuple[nn.Module, str]:
        """Load the models: the module to train, and a line on it."""

    def start(self, policy: nn.Module, directory: Path) -> None:
        """Take the module as prepared for training, before its first update."""

    def batches(self) -> Iterator[list[TreeBatch]]:
        """This rank's micro-batches of every optimizer step."""

    def after_step(self, metrics: dict[str, float]) -> dict[str, float]:
        """Hear a step's metrics; more of them, to be logged beside."""

    def evaluate(self) -> dict[str, float]:
        """The held-out metrics."""

    def epoch(self, step: int) -> float:
        """How many passes over the data have been made after `step`."""
