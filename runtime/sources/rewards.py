"""The reward of a run: pocket's grader, a function, or a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from data.errors import USAGE, InputError
from data.pocket import pocket_reward
from data.prompts import TakenColumns
from data.rows import Record
from models.load import load_tokenizer
from rollout.reward_model import TAKEN, check_prompts, load_reward_model
from rollout.score import Reward, load_reward, taken_columns
from runtime.config import TrainConfig


@dataclass(frozen=True)
class RewardPlan:
    """What will score the responses, before any weight is loaded."""

    name: str  # for the user
    function: Reward | None  # None: a model
    model: tuple[str, PreTrainedTokenizerBase] | None  # its directory, and its own tokenizer
    taken: TakenColumns  # the columns of a prompt's row that it is given

    def check(self, prompts: Sequence[Record], config: TrainConfig) -> None:
        """Raise InputError if a model could not be asked about one of these prompts."""
        if self.model is not None:
            ignore = config.reading.ignore
            check_prompts(prompts, *self.model, max_length=config.max_length, ignore=ignore)

    def load(self, config: TrainConfig, device: torch.device) -> Reward:
        if self.model is None:
            assert self.function is not None
            return self.function
        return load_reward_model(
            *self.model,
            dtype=config.dtype,
            device=device,
            layout=config.layout,
            ignore=config.reading.ignore,
            max_tokens=config.max_tokens,
            max_length=config.max_length,
        )


def plan_reward(reward: str | None, source: str) -> RewardPlan:
    """The reward that --reward names, for prompts from `source`.

    Raises:
        InputError: there is none, or it cannot be loaded.
    """
    if reward is None:
        if source != "pocket":
            raise InputError(
                "--reward is missing: train one with --loss reward on this data and give its"
                " final/ directory, or name a function as module:function",
                USAGE,
            )
        return RewardPlan("pocket's grader", pocket_reward, None, TakenColumns())
    if ":" not in reward:
        return RewardPlan(reward, None, (reward, load_tokenizer(reward, "--reward")), TAKEN)
    function = load_reward(reward)
    return RewardPlan(reward, function, None, taken_columns(function, f"--reward {reward}"))
