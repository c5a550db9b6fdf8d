r"""Dialogues written as plain text, such as Anthropic's hh-rlhf.

    \n\nHuman: Name a warm color.\n\nAssistant: Red is a warm color.

What follows a mark of the assistant, up to the next mark of the human, is the assistant's.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

# hh-rlhf's spelling, with or without the line breaks before the first turn, and Guanaco's.
SPELLINGS = (
    re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):"),
    re.compile(r"(?:\A\s*|\s*)### (Human|Assistant):"),
)
ROLES = {"Human": "user", "Assistant": "assistant"}


class Turn(NamedTuple):
    """Where a turn begins, and where its mark ends and its text begins."""

    role: str
    start: int
    text: int


def turns_of(text: str) -> list[Turn]:
    """The turns of a transcript; none if the text is no transcript: it must begin with a turn."""
    for spelling in SPELLINGS:
        turns = [Turn(ROLES[m[1]], m.start(), m.end()) for m in spelling.finditer(text)]
        if turns and turns[0].start == 0 and any(turn.role == "assistant" for turn in turns):
            return turns
    return []


def split_last(text: str) -> int:
    """Where the assistant's last turn begins, behind its mark: the end of the prompt."""
    return [turn.text for turn in turns_of(text) if turn.role == "assistant"][-1]


def split_first(text: str) -> int:
    """The same of the assistant's first turn that answers the human, if there is one."""
    turns = turns_of(text)
    asked = next((i for i, turn in enumerate(turns) if turn.role == "user"), 0)
    answers = [turn.text for turn in turns[asked:] if turn.role == "assistant"]
    return answers[0] if answers else split_last(text)


def segments(prompt: str, response: str) -> list[tuple[str, bool]]:
    """The response of a transcript as (text, whether it is the assistant's), in order.

    What follows the assistant's last turn is left out.
    """
    text, start = prompt + response, len(prompt)
    parts, role = [], "assistant"
    for turn in [*turns_of(text), Turn("", len(text), len(text))]:
        if turn.start < start:
            continue
        if turn.start > start:
            parts.append((text[start : turn.start], role == "assistant"))
        if turn.text > turn.start:
            parts.append((text[turn.start : turn.text], False))
        start, role = turn.text, turn.role
    while parts and not (parts[-1][1] and parts[-1][0].strip()):
        parts.pop()
    return parts


def humans_turn(prompt: str, response: str) -> bool:
    """Whether the response to a transcript holds a turn of the human."""
    start = len(prompt)
    return any(t.role == "user" and t.start >= start for t in turns_of(prompt + response))


def as_messages(text: str) -> list[dict[str, Any]]:
    """The same dialogue as chat messages, without the white space around a turn."""
    turns = turns_of(text)
    ends = [turn.start for turn in turns[1:]] + [len(text)]
    return [
        {"role": turn.role, "content": text[turn.text : end].strip()}
        for turn, end in zip(turns, ends, strict=True)
    ]
