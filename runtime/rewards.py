"""The two rewards that are not a user's own function: a reward model, and pocket's exact grader."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rollout.score import ModelReward
from runtime.layout import Wanted, choose_layout
from runtime.models import load_scorer


def reward_model(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    dtype: str,
    device: torch.device,
    layout: Wanted = "auto",
    flag: str = "--reward",
    **limits: int,
) -> ModelReward:
    """The classifier in a directory or on the hub, frozen, in the layout that it takes.

    Args:
        tokenizer: its own; given a pad token where it has none.
        flag: what to call it in an error.
        limits: max_tokens and max_length of `ModelReward`.

    Raises:
        InputError: it cannot be loaded, or is not a classifier with one output.
    """
    model: Any = load_scorer(name, tokenizer, dtype=dtype, flag=flag)
    model.requires_grad_(False).to(device)
    chosen = choose_layout(model, layout, "score", flag)[0]
    return ModelReward(model, tokenizer, layout=chosen, **limits)


def pocket_reward(prompts: list[str], responses: list[str]) -> list[float]:
    """1 for an answer that the exact grader accepts, else 0."""
    from data.pocket import grade

    return [float(grade(p, r)) for p, r in zip(prompts, responses, strict=True)]
