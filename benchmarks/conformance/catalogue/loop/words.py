"""Tokenizers for the checks of the encoding: byte-level BPE, trained on a few lines in a moment."""

from __future__ import annotations

from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

LINES = ["Question: how do I carry soup to the table? Answer: A bowl will do."] * 4
END = "<end>"
CHAT = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    """As GPT-2's: words carry the space before them, the pad token is the end token. Its chat
    template ends every turn with the end token."""
    bpe: Any = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(LINES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, pad_token=END, chat_template=CHAT
    )
