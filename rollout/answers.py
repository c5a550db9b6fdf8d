"""Answers in chats as texts: what the assistant said, without what the template puts behind it."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from data.chat import ChatTemplate
from data.errors import InputError
from data.messages import Text
from data.rendering import MARK
from data.rows import Record


def without_turn_ends(
    prompts: Sequence[Text], texts: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """The texts sampled for these prompts, without the turn's end where a prompt is messages.

    Where a turn does not end with the end token alone, as with <|im_end|> and then <|endoftext|>,
    the policy samples <|im_end|> as it does any other token, and the end token after it.
    """
    if all(isinstance(prompt, str) for prompt in prompts):
        return [*texts]
    end = _turn_end(tokenizer)
    return [
        text if isinstance(prompt, str) else _without(text, end)
        for prompt, text in zip(prompts, texts, strict=True)
    ]


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the chat template writes after an answer, without the end token that stops sampling."""
    question, answer = ({"role": r, "content": c} for r, c in (("user", "a"), ("assistant", MARK)))
    try:
        (found,) = ChatTemplate(tokenizer).conversations(Record([question], [answer], None))
    except InputError:  # a template that does not take so plain a conversation
        return ""
    return found.paths[0][-1].text.partition(MARK)[2].removesuffix(str(tokenizer.eos_token))


def _without(text: str, end: str) -> str:
    if text.endswith(end) or not end.strip():
        return text.removesuffix(end)
    visible = text.rstrip()
    return visible.removesuffix(end.strip()) if visible.endswith(end.strip()) else text
