"""What the loop asks of whatever gives it batches, in three phases.

    plan     all data read and checked, the number of steps known, no weight loaded
    models   the models loaded and checked, nothing trained
    feed     batches of every step, and evaluation

Each phase is frozen when made, and makes the next. The loop knows no more of where a batch is from.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.splits import StepRows
from data.trees import Layout
from rollout.state import RolloutState
from runtime.state import TrainState


class Evaluation(NamedTuple):
    """Metrics on held-out rows or prompts."""

    metrics: dict[str, float]
    samples: list[dict[str, Any]]  # some of what was sampled for it: prompt, response, score


class Plan(Protocol):
    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    @property
    def end_tokens(self) -> Collection[int]:
        """With which whole responses end in training."""

    @property
    def steps(self) -> int:
        """Optimizer steps planned."""

    @property
    def data(self) -> str:
        """One line on where the data is from."""

    @property
    def summary(self) -> list[str]:
        """Lines for the user before any weight is loaded."""

    @property
    def identity(self) -> dict[str, str]:
        """Hashes of what a run that goes on must be given again: data, models."""

    def preview(self) -> str:
        """Examples, as the model will see them."""

    def initial_rollout_state(self) -> RolloutState | None:
        """Of a run that has not begun; None where nothing is sampled."""

    def load(self) -> Models:
        """Load the models."""


class Models(Protocol):
    @property
    def trained(self) -> nn.Module:
        """The module whose parameters the optimizer gets."""

    @property
    def saved(self) -> PreTrainedModel:
        """The part of it that final/ will hold."""

    @property
    def beside(self) -> Mapping[str, PreTrainedModel]:
        """More models to save, by the names of their folders: PPO's critic."""

    @property
    def layout(self) -> Layout:
        """Of all batches."""

    @property
    def description(self) -> str:
        """One line for the user."""

    @property
    def learning_rates(self) -> Mapping[str, float]:
        """Peaks of their own, by prefix of the parameters' names."""

    def feed(self, trained: nn.Module, state: TrainState, directory: Path) -> Feed:
        """With the module as prepared for training, before its first update.

        `directory` keeps what need not be computed again when the run is started again.
        """


class Feed(Protocol):
    def steps(self, start: int) -> Iterator[StepRows]:
        """The rows of every optimizer step after the first `start`."""

    def after_step(self, metrics: dict[str, float]) -> dict[str, float]:
        """More metrics of the step just made, for its line in the log."""

    def evaluate(self) -> Evaluation:
        """The held-out metrics, over all ranks."""

    def epoch(self, step: int) -> float:
        """How many passes over the data have been made after `step`."""
