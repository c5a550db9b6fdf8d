"""A reward from a trained model: a sequence classifier with one output."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.encode import Row, encode_records
from data.errors import USAGE, InputError
from data.readers import short
from data.rows import Record
from data.splits import Split
from data.trees import Layout
from models.checkpoint import max_positions
from models.forward import Scorer
from models.inference import forward_pass
from models.layout import Wanted, choose_layout
from models.load import load_scorer


class ModelReward:
    """A `Reward` from a sequence classifier with one output, as `--loss reward` trains it.

    Texts become tokens by the rules they were trained with (data/encode.py), one end token
    included, and the score is read at the last. A response that has no tokens, which training
    drops, is its end token alone.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_tokens: int = 4096,
        max_length: int = 1024,
        layout: Layout = "tree",
    ) -> None:
        """
        Args:
            max_tokens: tokens of a micro-batch.
            max_length: a longer text keeps its start, as in training.
            layout: "rectangle" for models that do not take the mask of a token tree.

        Raises:
            InputError: the model has more than one output, or none where it is looked for.
        """
        name, labels = type(model).__name__, model.config.num_labels
        if labels != 1:
            raise InputError(
                f"reward model: {name} has num_labels {labels}, and a score is one number;"
                " give a sequence classifier with num_labels 1, such as --loss reward trains",
                USAGE,
            )
        if not hasattr(model, "score"):
            raise InputError(
                f"reward model: {name} has no head `score` on a causal language model;"
                " give a sequence classifier such as --loss reward trains",
                USAGE,
            )
        self.model = model.eval()
        self.scorer = Scorer(model)
        self.tokenizer = tokenizer
        self.max_tokens, self.max_length, self.layout = max_tokens, max_length, layout

    def __call__(self, prompts: list[str], responses: list[str]) -> list[float]:
        rows = self._rows(prompts, responses) if prompts else []
        split = Split(rows, self.layout, {"include_last_token": True})
        scores = [0.0] * len(rows)
        for members, _, values in forward_pass(
            self.scorer, split, max_tokens=self.max_tokens, device=self.model.device
        ):
            for i, value in zip(members, values.tolist(), strict=True):
                scores[i] = value
        return scores

    def _rows(self, prompts: list[str], responses: list[str]) -> list[Row]:
        # Each prompt once more with the end token alone, which stands in where a row is dropped.
        end = str(self.tokenizer.eos_token)
        texts = list(zip(prompts, responses, strict=True)) + [(prompt, end) for prompt in prompts]
        records = [Record(prompt, response, None) for prompt, response in texts]
        encoded = encode_records(records, self.tokenizer, max_length=self.max_length)
        found = dict(zip(encoded.source, encoded.rows, strict=True))
        rows = []
        for i, prompt in enumerate(prompts):
            row = found.get(i, found.get(len(prompts) + i))
            if row is None:
                raise InputError(
                    f"reward model, row {i + 1} (prompt {short(prompt)}): no room for a response in"
                    f" max_length {self.max_length}; raise it, or leave out long prompts"
                )
            rows.append(row)
        return rows


def load_reward_model(
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
    chosen = choose_layout(model, layout, "seq_cls", flag)[0]
    positions = max_positions(model.config)
    if positions is not None:
        limits["max_length"] = min(positions, limits.get("max_length", positions))
    return ModelReward(model, tokenizer, layout=chosen, **limits)
