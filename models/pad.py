"""A pad token for a reward model that is no token of any text.

Transformers reads a classifier's score at the last token that is not the pad token, and the texts
end with the end token: so pad must not be the end token. Nor may it be an ordinary token, such as
`!`: as pad it would be special, and the tokenizer would split `!!` otherwise than in training.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import PreTrainedModel, PreTrainedTokenizerBase

NEW = "<|pad|>"
UNUSED = re.compile(r"pad|reserved|unused", re.IGNORECASE)
ENDS = re.compile(r"end|eo[stm]|sep|</", re.IGNORECASE)  # with which a text may end as well


def pad_token(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The special token to pad with, never the end token; None where a new one is needed.

    The tokenizer's own pad token first, then one that is there to be unused, then unk, then bos,
    then any other special token with which no text ends.
    """
    end = tokenizer.eos_token
    added = sorted(tokenizer.added_tokens_decoder.items())
    special = [str(token) for _, token in added if token.special and str(token) != end]
    if tokenizer.pad_token is not None and tokenizer.pad_token != end:
        return str(tokenizer.pad_token)
    wanted: list[Callable[[str], Any]] = [
        UNUSED.search,
        lambda token: token == tokenizer.unk_token,
        lambda token: token == tokenizer.bos_token,
        lambda token: not ENDS.search(token),
    ]
    return next((token for fits in wanted for token in special if fits(token)), None)


def give_pad_token(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Give both a pad token; a new one gets a spare row of the embedding, or one row more."""
    token = pad_token(tokenizer)
    if token is None:
        taken, token = tokenizer.get_vocab(), NEW
        while token in taken:
            token = f"<{token}>"
        tokenizer.add_special_tokens({"pad_token": AddedToken(token, special=True)})
    elif token != tokenizer.pad_token:
        tokenizer.pad_token = token
    number: Any = tokenizer.pad_token_id
    embedding: Any = model.get_input_embeddings()
    rows = len(embedding.weight)
    if number >= rows:  # nothing is asked of these rows but that they are there
        model.resize_token_embeddings(number + 1, mean_resizing=False)
        embedding = model.get_input_embeddings()
        with torch.no_grad():
            embedding.weight[rows:] = 0
    model.config.get_text_config().pad_token_id = number
