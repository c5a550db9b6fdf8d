"""What a row means: check it, and bring it into the one form of a record.

The format of a row follows from its columns:

    prompt, chosen, rejected    preference; the texts are joined as they are
    chosen, rejected            preference, the prompt being what both begin with
    goal, sol1, sol2, label     PIQA, worded as lm-eval words it: "Question: {goal}\nAnswer:" and
                                " {sol}", nothing stripped; label 0 means that sol1 is chosen
    prompt, completion          for losses that need no rejected response

A text is a string or a list of chat messages. `margin`, a number, is optional; other columns are
ignored. What is wrong ends in one line: `file:line:column: reason; what to do`.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data.errors import InputError
from data.readers import short

Messages = list[dict[str, Any]]
Text = str | Messages  # a string, or chat messages {"role", "content"}

ROLES = ("system", "developer", "user", "assistant", "tool")
PREFERENCE = ("prompt", "chosen", "rejected")
IMPLICIT = ("chosen", "rejected")
PIQA = ("goal", "sol1", "sol2", "label")
COMPLETION = ("prompt", "completion")
ROW_FORMATS = (PREFERENCE, IMPLICIT, PIQA, COMPLETION)
COLUMNS = {column for row_format in ROW_FORMATS for column in row_format} | {"margin"}
BEFORE_GOAL, AFTER_GOAL = "Question: ", "\nAnswer:"


@dataclass(frozen=True, slots=True)
class Record:
    prompt: Text
    chosen: Text  # for prompt/completion data: the completion
    rejected: Text | None  # None for prompt/completion data
    margin: float | None = None  # by how much chosen should win (reward model)
    where: str = ""  # "train.jsonl:17", for messages
    label: int | None = None  # PIQA's: 0 if the chosen one is sol1, 1 if it is sol2
    tools: list[Any] | None = None  # for the chat template
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)  # and more variables for it
    columns: Mapping[str, object] = field(default_factory=dict)  # the row's others, for a reward


def row_format_of(
    row: Collection[str], where: str, pairs: bool, columns: Mapping[str, str]
) -> tuple[str, ...]:
    """The format that a row's columns make it."""
    formats = [f for f in ROW_FORMATS if set(f) <= set(row)]
    if pairs and formats == [COMPLETION]:
        raise InputError(
            f"{where}:rejected: the column is missing, and this loss compares two responses;"
            " give chosen and rejected, or take a loss without pairs (sft)"
        )
    if formats:
        return formats[0]
    nearest = max(ROW_FORMATS, key=lambda f: len(set(f) & set(row)) / len(f))
    if set(nearest) & set(row):
        missing = next(column for column in nearest if column not in row)
        _missing(missing, where, columns)
    raise InputError(
        f"{where}: of the columns {short(list(row))} none is known; give prompt, chosen, rejected"
        " or prompt, completion or goal, sol1, sol2, label (a mapping can rename them)"
    )


def _missing(column: str, where: str, columns: Mapping[str, str]) -> None:
    theirs = columns.get(column)
    renamed = f" (and so is {theirs}, which was to be it)" if theirs else ""
    hint = ", or put PIQA's train-labels.lst beside train.jsonl" if column == "label" else ""
    raise InputError(f"{where}:{column}: the column is missing{renamed}; add it{hint}")


def make_record(
    row: Mapping[str, object],
    where: str,
    row_format: tuple[str, ...],
    columns: Mapping[str, str] | None = None,
) -> Record:
    """Check one row of the format its file has, and bring it into the one form of a record."""
    for column in row_format:
        if column not in row:
            _missing(column, where, columns or {})
    if row_format == IMPLICIT and "prompt" in row:
        raise InputError(f"{where}:prompt: the first row has no such column; give it in every row")
    prompt: Text | None
    names: Sequence[str]
    piqa_label: int | None = None
    if row_format == PIQA:
        prompt = f"{BEFORE_GOAL}{_string(row['goal'], where, 'goal')}{AFTER_GOAL}"
        first = _response(row, "sol1", where)
        second = _response(row, "sol2", where)
        if not isinstance(first, str) or not isinstance(second, str):
            raise InputError(f"{where}:sol1: messages in a PIQA row; give two strings")
        label = row["label"]
        if type(label) is not int or label not in (0, 1):
            raise InputError(
                f"{where}:label: {short(label)} is not 0 or 1; 0 says sol1 is right, 1 sol2"
            )
        piqa_label = label
        responses: list[Text] = (
            [f" {second}", f" {first}"] if label else [f" {first}", f" {second}"]
        )
        names = ("sol1", "sol2")
    else:
        prompt = _text(row["prompt"], where, "prompt") if "prompt" in row_format else None
        names = row_format[-2:] if row_format != COMPLETION else row_format[1:]
        responses = [_response(row, column, where) for column in names]
        if row_format == COMPLETION and isinstance(row.get("label"), bool):
            raise InputError(
                f"{where}:label: rows marked good and bad one by one (unpaired preferences) fit no"
                " loss here; keep the good rows without the label, or pair them"
            )
    if len(responses) == 2 and isinstance(responses[0], str) != isinstance(responses[1], str):
        raise InputError(f"{where}:{names[1]}: one is a string, one is messages; make both alike")
    if len(responses) == 2 and responses[0] == responses[1]:
        raise InputError(
            f"{where}:{names[1]}: the same as {names[0]}, nothing to prefer; remove the row"
        )
    prompt, responses = _join(prompt, responses, where, names)
    margin = row.get("margin")
    if margin is not None:
        if isinstance(margin, bool) or not isinstance(margin, (int, float)):
            raise InputError(f"{where}:margin: {short(margin)} is not a number; give one or none")
        if not abs(margin) <= sys.float_info.max:
            raise InputError(f"{where}:margin: {short(margin)} is not finite; give a finite number")
        margin = float(margin)
    rejected = responses[1] if len(responses) == 2 else None
    return Record(prompt, responses[0], rejected, margin, where, piqa_label)


def _join(
    prompt: Text | None, responses: list[Text], where: str, names: Sequence[str]
) -> tuple[Text, list[Text]]:
    """Strings with strings, or messages with one assistant message that answers them."""
    texts = [response for response in responses if isinstance(response, str)]
    if texts:
        if prompt is None:
            n = common_prompt(texts[0], texts[1])
            return texts[0][:n], [text[n:] for text in texts]
        if isinstance(prompt, str):
            return prompt, responses
        return prompt, [[{"role": "assistant", "content": text}] for text in texts]

    chats = [response for response in responses if not isinstance(response, str)]
    shared = chats[0][: common_prefix([chat[:-1] for chat in chats])]
    if prompt is None:
        prompt = shared
    elif isinstance(prompt, str):
        asked = {"role": "user", "content": prompt}
        prompt = shared if asked in shared else [asked]
    if all(chat[: len(prompt)] == prompt for chat in chats):
        chats = [chat[len(prompt) :] for chat in chats]
    for chat, name in zip(chats, names, strict=True):
        if len(chat) != 1:
            raise InputError(
                f"{where}:{name}: {len(chat)} messages after the prompt, and a response is one"
                " message of the assistant; put what comes before it into the prompt"
            )
    if not prompt:
        raise InputError(f"{where}:prompt: no message to respond to; give at least one")
    return prompt, [*chats]


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


def _response(row: Mapping[str, object], column: str, where: str) -> Text:
    text = _text(row[column], where, column)
    if isinstance(text, list) and text[-1]["role"] != "assistant":
        raise InputError(
            f"{where}:{column}: the last message is the {text[-1]['role']}'s;"
            " end with one of the assistant"
        )
    if not (text if isinstance(text, str) else text[-1]["content"]).strip():
        raise InputError(f"{where}:{column}: the response is empty; give it some text")
    return text


def _text(value: object, where: str, column: str) -> Text:
    if not isinstance(value, list):
        return _string(value, where, column)
    if not value:
        raise InputError(f"{where}:{column}: a list without messages; give at least one")
    messages: Messages = []
    for number, message in enumerate(value, 1):
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise InputError(
                f"{where}:{column}: message {number} is not an object with role and content;"
                ' give {"role": ..., "content": ...}'
            )
        if message["role"] not in ROLES:
            raise InputError(
                f"{where}:{column}: message {number} has the role {short(message['role'])};"
                f" give one of {', '.join(ROLES)}"
            )
        content = _string(message["content"], where, column, f"the content of message {number}, ")
        messages.append({"role": message["role"], "content": content})
    return messages


def _string(value: object, where: str, column: str, what: str = "") -> str:
    if not isinstance(value, str):
        is_null = "null" if value is None else short(value)
        raise InputError(f"{where}:{column}: {what}{is_null} is not a string; give a string")
    if "\0" in value:
        raise InputError(f"{where}:{column}: {what}a NUL at {value.index(chr(0))}; remove it")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}:{column}: {what}half a surrogate pair at {error.start}, not a character;"
            " write the file again from its source"
        ) from error
    return value
