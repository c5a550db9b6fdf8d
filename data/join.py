"""Prompt and responses brought together: strings with strings, messages with their answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data.errors import InputError
from data.messages import Messages, Text, is_blank
from data.readers import short
from data.transcripts import as_messages, humans_turn, split_last, turns_of


def join(
    prompt: Text | None,
    responses: list[Text],
    where: str,
    names: Sequence[str],
    *,
    chat: bool = False,
) -> tuple[Text, list[Text]]:
    """Strings with strings, or messages with the messages that answer them.

    `prompt` None: what the responses begin with alike. `chat`: make messages of strings.
    """
    texts = [response for response in responses if isinstance(response, str)]
    if not texts:
        return _join_chats(prompt, [r for r in responses if not isinstance(r, str)], where, names)
    if prompt is None:
        prompt, texts = _implied(texts, where, names)
    if isinstance(prompt, str):
        if len(texts) == 2 and turns_of(prompt):
            for text, name in zip(texts, names, strict=True):
                if humans_turn(prompt, text):
                    raise InputError(
                        f"{where}:{name}: the response holds a turn of the human, which would be"
                        " trained on; split the transcript at its last Assistant: or remove the row"
                    )
        if not chat:
            return prompt, [*texts]
        if turns_of(prompt):
            wholes = [as_messages(prompt + text) for text in texts]
            return _join_chats(None, wholes, where, names)
        if not prompt.strip():
            raise InputError(f"{where}:prompt: blank, so --chat has no message to make of it")
        prompt = [{"role": "user", "content": prompt.strip()}]
        texts = [text.strip() for text in texts]
    return _join_chats(
        prompt, [[{"role": "assistant", "content": text}] for text in texts], where, names
    )


def _implied(texts: list[str], where: str, names: Sequence[str]) -> tuple[str, list[str]]:
    """The prompt that whole texts begin with, and what follows it in each.

    Of transcripts it ends with the mark of the assistant's last turn.
    """
    if all(turns_of(text) for text in texts):
        prompts = {text[: split_last(text)] for text in texts}
        if len(prompts) > 1:
            raise InputError(
                f"{where}:{names[-1]}: the two transcripts differ before the assistant's last turn,"
                " and a pair shares its prompt; remove the row"
            )
        n = len(prompts.pop())
        for text, name in zip(texts, names, strict=True):
            if is_blank(text[n:]):
                raise InputError(f"{where}:{name}: the response is empty; give it some text")
    else:
        n = common_prompt(texts[0], texts[-1])
    return texts[0][:n], [text[n:] for text in texts]


def _join_chats(
    prompt: Text | None, chats: list[Messages], where: str, names: Sequence[str]
) -> tuple[Text, list[Text]]:
    # Messages that all begin with belong to the prompt; of one chat those before its first answer.
    answers = [next(i for i, m in enumerate(c) if m["role"] == "assistant") for c in chats]
    alike = common_prefix([chat[:-1] for chat in chats]) if len(chats) > 1 else answers[0]
    shared = chats[0][:alike]
    if isinstance(prompt, str):
        asked = {"role": "user", "content": prompt}
        if shared and asked not in shared:
            says = next((m["content"] for m in reversed(shared) if m["role"] == "user"), None)
            raise InputError(
                f"{where}:{names[0]}: its messages ask {short(says)}, and the prompt is"
                f" {short(prompt)}; make both alike, or leave the prompt out"
            )
        prompt = shared if shared else [asked]
        chats = [chat[alike:] for chat in chats]
    elif prompt is None:
        prompt = shared
        chats = [chat[alike:] for chat in chats]
    elif all(chat[: len(prompt)] == prompt and len(chat) > len(prompt) for chat in chats):
        prompt, chats = _move_shared(prompt, [chat[len(prompt) :] for chat in chats])
    else:
        prompt, chats = _move_shared(prompt, chats)
    for chat, name in zip(chats, names, strict=True):
        if chat[0]["role"] != "assistant":
            both = f"the prompt's last message is {short(prompt[-1]['content'])}" if prompt else ""
            raise InputError(
                f"{where}:{name}: after the prompt comes a message of the {chat[0]['role']},"
                f" {short(chat[0]['content'])}, where the assistant has to answer"
                f"{f' ({both})' if both else ''}; make the prompts alike, or remove the row"
            )
        roles = [message["role"] for message in chat]
        if ("assistant", "assistant") in zip(roles, roles[1:], strict=False):
            raise InputError(
                f"{where}:{name}: two messages of the assistant in a row; make them one message"
            )
    if not prompt:
        raise InputError(f"{where}:prompt: no message to respond to; give at least one")
    if prompt[-1]["role"] in ("system", "developer"):
        raise InputError(
            f"{where}:prompt: it ends with the {prompt[-1]['role']}'s message, so nothing was"
            " asked; give a message of the user"
        )
    return prompt, [*chats]


def _move_shared(prompt: Messages, chats: list[Messages]) -> tuple[Messages, list[Messages]]:
    """Into the prompt: the messages that all chats begin with, up to an answer of a single one."""
    if len(chats) > 1:
        n = common_prefix([chat[:-1] for chat in chats])
    else:
        n = next(i for i, m in enumerate(chats[0]) if m["role"] == "assistant")
    return prompt + chats[0][:n], [chat[n:] for chat in chats]


def with_system(prompt: Text, system: str | None, where: str) -> Text:
    """The system prompt first: a message of its own, or a paragraph above a string."""
    if system is None:
        return prompt
    if isinstance(prompt, str):
        return f"{system}\n\n{prompt}"
    if prompt[0]["role"] in ("system", "developer"):
        if prompt[0]["content"] == system:
            return prompt
        raise InputError(f"{where}:system: the messages have a system prompt too; keep one")
    return [{"role": "system", "content": system}, *prompt]


def common_prefix(sequences: Sequence[Sequence[Any]]) -> int:
    """How many leading items all the sequences share."""
    for n, items in enumerate(zip(*sequences, strict=False)):
        if items.count(items[0]) < len(items):
            return n
    return min(map(len, sequences))


def common_prompt(first: str, second: str) -> int:
    """Length of the prompt that two whole texts share, when no prompt is given.

    It is their longest common prefix, cut back so that it ends neither inside a word nor after
    the space before one (the space belongs to the response, as in " yes"). TRL's `extract_prompt`
    cuts the space too, but splits words: of "a: yes", "a: yet" it makes "a: ye". If one text
    begins the other, its last word is cut off as well, so that no response is blank.
    """
    n = common_prefix([first, second])
    if not first[n:].strip() or not second[n:].strip():
        n = len(first[:n].rstrip()) - 1
    if first[n : n + 1].isalnum() or second[n : n + 1].isalnum():
        while n > 0 and first[n - 1].isalnum():
            n -= 1
    return n - 1 if first[n - 1 : n] == " " else n
