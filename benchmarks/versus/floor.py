"""The fewest floating-point operations that a step's rows can be trained with.

A forward takes 2 a matmul parameter and token, 2 a parameter of the head and predicted token, and 4
a layer, query dimension, token and token that it sees. A backward takes twice as much. No prompt
and no beginning that two responses share is computed twice, and nothing is padded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data.row_table import Row, shared_length
from data.trees import tree_tokens
from models.locate import locate
from runtime.files import read_json


@dataclass(frozen=True)
class Shape:
    """Of a Llama-like model."""

    layers: int
    width: int
    query: int  # heads x head dimension
    key: int
    hidden: int
    vocabulary: int

    @property
    def body(self) -> int:
        """Parameters of the matrices below the head."""
        attention = 2 * self.width * self.query + 2 * self.width * self.key
        return self.layers * (attention + 3 * self.width * self.hidden)

    @property
    def head(self) -> int:
        return self.vocabulary * self.width


def shape_of(model: str) -> Shape:
    """From a model's config.json. Raises KeyError if that is not Llama-like."""
    config = read_json(Path(locate(model), "config.json"))
    heads, width = config["num_attention_heads"], config["hidden_size"]
    head = config.get("head_dim") or width // heads
    return Shape(
        config["num_hidden_layers"],
        width,
        heads * head,
        config.get("num_key_value_heads", heads) * head,
        config["intermediate_size"],
        config["vocab_size"],
    )


def floor_flops(loss: str, row: Row, shape: Shape) -> int:
    """Of one row's forward and backward; of DPO the reference's pass is not of the step.

    The row's responses are those that are trained: one for sft.
    """
    score = loss == "reward"  # is read at the last token; log-probs do without it
    tokens = tree_tokens(row, include_last_token=score)
    forward = 2 * tokens * shape.body + 2 * _predicted(loss, row) * shape.head
    forward += 4 * shape.layers * shape.query * _seen(row, include_last_token=score)
    return 3 * forward


def _predicted(loss: str, row: Row) -> int:
    """Tokens whose hidden state the head is needed for."""
    shared, responses = shared_length(row), sum(map(len, row.responses))
    if loss == "reward":
        return 0
    if loss == "sft":
        return responses
    if loss == "dpo":  # what the responses share cancels; both first differences have one parent
        return responses - 2 * shared - 1
    return len(row.prompt) - 1 + responses - shared - 1  # orpo, with TRL's likelihood term


def _seen(row: Row, *, include_last_token: bool) -> int:
    """Sum over the tokens of how many tokens each attends to, itself included."""
    trunk = len(row.prompt) + shared_length(row)
    seen = trunk * (trunk + 1) // 2
    for response in row.responses:
        end = len(row.prompt) + len(response) - (not include_last_token)
        seen += max(end * (end + 1) // 2 - trunk * (trunk + 1) // 2, 0)
    return seen
