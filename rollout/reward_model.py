"""A reward from a trained model: a sequence classifier with one output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.encode import encode_records
from data.errors import USAGE, InputError
from data.messages import Text
from data.prompts import OF_THE_TEMPLATE, TakenColumns
from data.readers import short
from data.row_table import Row
from data.rows import Record
from data.splits import Split
from data.trees import Layout
from models.checkpoint import max_positions
from models.forward import Scorer
from models.inference import forward_pass
from models.layout import Wanted, choose_layout
from models.load import load_scorer

# What a chat template is given beside the messages is asked of the reward model too.
TAKEN = TakenColumns(optional=frozenset(OF_THE_TEMPLATE))


# Text that a template which leaves out the answer would not write by chance.
SOME_ANSWER = "Some answer."


class ModelReward:
    """A `Reward` from a sequence classifier with one output, as `--loss reward` trains it.

    Texts become tokens by the rules they were trained with (data/encode.py), one end token
    included, and the score is read at the last. Messages are rendered by the model's own chat
    template, whatever the policy's is. A response without text, which training drops, is the end
    of a turn alone.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_tokens: int = 4096,
        max_length: int = 1024,
        layout: Layout = "tree",
        ignore: frozenset[str] = frozenset(),
    ) -> None:
        """
        Args:
            max_tokens: tokens of a micro-batch.
            max_length: a longer text keeps its start, as in training.
            ignore: message keys that its chat template may pass over.
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
        self.ignore = ignore

    def __call__(
        self,
        prompts: Sequence[Text],
        responses: Sequence[str],
        tools: Sequence[list[Any] | None] | None = None,
        chat_template_kwargs: Sequence[Mapping[str, Any] | None] | None = None,
    ) -> list[float]:
        none = [None] * len(prompts)
        variables = zip(tools or none, chat_template_kwargs or none, strict=True)
        records = [
            asked(prompt, response, tools, kwargs or {}, f"reward model, row {number}")
            for number, (prompt, response, (tools, kwargs)) in enumerate(
                zip(prompts, responses, variables, strict=True), 1
            )
        ]
        rows = self.rows(records) if records else []
        split = Split(rows, self.layout, {"include_last_token": True})
        scores = [0.0] * len(rows)
        for members, _, values in forward_pass(
            self.scorer, split, max_tokens=self.max_tokens, device=self.model.device
        ):
            for i, value in zip(members, values.tolist(), strict=True):
                scores[i] = value
        return scores

    def rows(self, records: Sequence[Record]) -> list[Row]:
        return rows_of(records, self.tokenizer, max_length=self.max_length, ignore=self.ignore)


def asked(
    prompt: Text, response: str, tools: list[Any] | None, kwargs: Mapping[str, Any], where: str
) -> Record:
    """What a reward model is asked: the record that it would have been trained on."""
    chat = not isinstance(prompt, str)
    answer: Text = [{"role": "assistant", "content": response}] if chat else response
    return Record(prompt, answer, None, None, where, None, tools, kwargs)


def rows_of(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    ignore: frozenset[str],
) -> list[Row]:
    """The tokens of each record.

    Raises:
        InputError: messages that the template cannot render, or no room for a response.
    """
    encoded = encode_records(records, tokenizer, max_length=max_length, ignore=ignore, sampled=True)
    found = dict(zip(encoded.source, encoded.rows, strict=True))
    for number, record in enumerate(records):
        if number not in found:
            raise InputError(
                f"{record.where} (prompt {short(record.prompt)}): no room for a response in"
                f" max_length {max_length}; raise it, or leave out long prompts"
            )
    return [found[number] for number in range(len(records))]


def check_prompts(
    prompts: Sequence[Record],
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    ignore: frozenset[str],
) -> None:
    """Raise InputError if the reward model `name` could not be asked about any of these prompts."""
    chats = [record for record in prompts if not isinstance(record.prompt, str)]
    if chats and not tokenizer.chat_template:
        raise InputError(
            f"--reward {name}: its tokenizer has no chat template, and the prompts are messages"
            f" ({chats[0].where}); give a reward model that was trained on messages, or prompts"
            " that are strings",
            USAGE,
        )
    records = [
        asked(record.prompt, SOME_ANSWER, record.tools, record.template_kwargs, record.where)
        for record in prompts
    ]
    try:
        rows_of(records, tokenizer, max_length=max_length, ignore=ignore)
    except InputError as error:
        raise InputError(f"--reward {name}: {error}", USAGE) from error


def load_reward_model(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    dtype: str,
    device: torch.device,
    layout: Wanted = "auto",
    flag: str = "--reward",
    ignore: frozenset[str] = frozenset(),
    **limits: int,
) -> ModelReward:
    """The classifier in a directory or on the hub, frozen, in the layout that it takes.

    Args:
        tokenizer: its own; given a pad token where it has none.
        flag: what to call it in an error.
        ignore, limits: those of `ModelReward`, max_tokens and max_length.

    Raises:
        InputError: it cannot be loaded, or is not a classifier with one output.
    """
    model: Any = load_scorer(name, tokenizer, dtype=dtype, flag=flag, new_head=False)
    model.requires_grad_(False).to(device)
    chosen = choose_layout(model, layout, "seq_cls", flag)[0]
    positions = max_positions(model.config)
    if positions is not None:
        limits["max_length"] = min(positions, limits.get("max_length", positions))
    return ModelReward(model, tokenizer, layout=chosen, ignore=ignore, **limits)
