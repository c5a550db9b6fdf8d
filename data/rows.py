"""What a row means: check it, and bring it into the one form of a record.

`data/formats.py` says which columns make which format. A text is a string or a list of chat
messages. What is wrong ends in one line: `file:line:column: reason; what to do`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from data.errors import InputError
from data.formats import (
    ALPACA,
    ALWAYS,
    IMPLICIT,
    NUMBERED,
    PIQA,
    TEXT,
    RowFormat,
    missing_column,
)
from data.join import join, with_system
from data.messages import (
    Messages,
    Text,
    check_string,
    is_blank,
    read_template_kwargs,
    read_text,
    read_tools,
)
from data.options import CONVERSATION, ReadOptions
from data.readers import short
from data.transcripts import split_first, split_last, turns_of

BEFORE_GOAL, AFTER_GOAL = "Question: ", "\nAnswer:"
# Stanford Alpaca's own wording (its prompt_input and prompt_no_input).
LARGEST = 3.4028234e38  # of float32, which losses compute in
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further"
    " context. Write a response that appropriately completes the request.\n\n### Instruction:\n"
    "{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA_NO_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes"
    " the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)


@dataclass(frozen=True, slots=True)
class Record:
    prompt: Text  # messages that end with the assistant's are continued by the response
    chosen: Text  # for data of one response: that one; messages of several turns begin with one
    rejected: Text | None  # None for data of one response
    margin: float | None = None  # by how much chosen should win (reward model)
    where: str = ""  # "train.jsonl:17", for messages
    label: int | None = None  # PIQA's: 0 if the chosen one is sol1, 1 if it is sol2
    tools: list[Any] | None = None  # for the chat template
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)  # and more variables for it
    columns: Mapping[str, object] = field(default_factory=dict)  # the row's others, for a reward
    unanswered: bool = False  # its conversation went on after the last answer; that was left out

    @property
    def responses(self) -> list[Text]:
        return [self.chosen] if self.rejected is None else [self.chosen, self.rejected]


def make_record(
    row: Mapping[str, object], where: str, row_format: RowFormat, options: ReadOptions
) -> Record:
    """Check one row of the format its file has, and bring it into the one form of a record."""
    for column in row_format.columns:
        if column not in row:
            raise missing_column(column, where, options.columns)
    if row_format is IMPLICIT and "prompt" in row:
        raise InputError(f"{where}:prompt: the first row has no such column; give it in every row")
    prompt, responses, names, piqa_label, unanswered = _read(row, where, row_format, options)
    if len(responses) == 2 and isinstance(responses[0], str) != isinstance(responses[1], str):
        raise InputError(f"{where}:{names[1]}: one is a string, one is messages; make both alike")
    if len(responses) == 2 and responses[0] == responses[1]:
        raise InputError(
            f"{where}:{names[1]}: the same as {names[0]}, nothing to prefer; remove the row"
        )
    system = None
    if "system" in options.columns and row.get("system") not in (None, ""):
        system = check_string(row["system"], where, "system")
    prompt, responses = join(prompt, responses, where, names, chat=options.chat)
    if options.train_on == "last" and len(responses) == 1 and not isinstance(responses[0], str):
        prompt, responses = [*prompt, *responses[0][:-1]], [responses[0][-1:]]
    prompt = with_system(prompt, system, where)
    kept = {name: row.get(name) for name in ALWAYS if name not in options.ignore}
    tools = read_tools(kept.get("tools"), where)
    kwargs = read_template_kwargs(kept.get("chat_template_kwargs"), where)
    if isinstance(prompt, str) and (tools or kwargs):
        column = "tools" if tools else "chat_template_kwargs"
        raise InputError(
            f"{where}:{column}: the chat template reads it, and this row is strings;"
            " give messages, or --chat"
        )
    rejected = responses[1] if len(responses) == 2 else None
    return Record(
        prompt,
        responses[0],
        rejected,
        _margin(row, where),
        where,
        piqa_label,
        tools,
        kwargs,
        unanswered=unanswered,
    )


# ------------------------------------------------------------------------------ the formats


class Parts(NamedTuple):
    """Of a row, before prompt and responses are joined."""

    prompt: Text | None  # None: what the responses begin with
    responses: list[Text]  # the chosen one first
    names: tuple[str, ...]  # their columns
    label: int | None = None  # PIQA's
    unanswered: bool = False  # see Record


def _read(
    row: Mapping[str, object], where: str, row_format: RowFormat, options: ReadOptions
) -> Parts:
    """What the columns of a row's format hold."""
    if row_format is PIQA:
        return _piqa(row, where)
    if row_format is NUMBERED:
        return _numbered(row, where, options)
    if row_format is ALPACA:
        output = _response(row, "output", where)
        return Parts(_alpaca_prompt(row, where, options), [output], ("output",))
    if row_format is TEXT:
        return _plain_text(row, "text", where, options)
    if row_format.columns[0] in CONVERSATION:
        return _conversation(row, row_format.columns[0], where, options)
    names = row_format.columns[-row_format.responses :]
    prompt = read_text(row["prompt"], where, "prompt") if "prompt" in row else None
    responses = [_response(row, column, where) for column in names]
    before = next((column for column in CONVERSATION if column in row), None)
    if row_format is IMPLICIT and before and all(_is_one_answer(r) for r in responses):
        prompt = read_text(row[before], where, before)  # LlamaFactory's: the answers stand apart
    return Parts(prompt, responses, names)


def _is_one_answer(response: Text) -> bool:
    return not isinstance(response, str) and len(response) == 1


def _piqa(row: Mapping[str, object], where: str) -> Parts:
    """Worded as lm-eval words it, nothing stripped; label 0 means that sol1 is chosen."""
    prompt = f"{BEFORE_GOAL}{check_string(row['goal'], where, 'goal')}{AFTER_GOAL}"
    solutions = [_response(row, column, where) for column in ("sol1", "sol2")]
    if not all(isinstance(solution, str) for solution in solutions):
        raise InputError(f"{where}:sol1: messages in a PIQA row; give two strings")
    label = row["label"]
    if type(label) is not int or label not in (0, 1):
        raise InputError(
            f"{where}:label: {short(label)} is not 0 or 1; 0 says sol1 is right, 1 sol2"
        )
    chosen, rejected = solutions[label], solutions[1 - label]
    return Parts(prompt, [f" {chosen}", f" {rejected}"], ("sol1", "sol2"), label)


def _numbered(row: Mapping[str, object], where: str, options: ReadOptions) -> Parts:
    """Two responses and a column that says which is better, by the convention that was given."""
    assert options.winner is not None
    prompt = read_text(row["prompt"], where, "prompt") if "prompt" in row else None
    responses = [_response(row, column, where) for column in ("first", "second")]
    wins = options.winner.wins(row["winner"])
    if wins is None:
        one, other = options.winner
        raise InputError(
            f"{where}:winner: {short(row['winner'])} is neither {one} (the first is better) nor"
            f" {other} (the second); correct winner=...:A/B in --columns, or --bad_rows skip"
        )
    if wins:
        return Parts(prompt, responses, ("first", "second"))
    return Parts(prompt, responses[::-1], ("second", "first"))


def _alpaca_prompt(row: Mapping[str, object], where: str, options: ReadOptions) -> str:
    """The prompt of an Alpaca row; with --chat the instruction alone, its input below it."""
    instruction = check_string(row["instruction"], where, "instruction")
    given = row.get("input") or ""
    given = check_string(given, where, "input")
    if options.chat:
        return f"{instruction}\n\n{given}" if given.strip() else instruction
    wording = ALPACA_INPUT if given.strip() else ALPACA_NO_INPUT
    return wording.format(instruction=instruction, input=given)


def _plain_text(row: Mapping[str, object], column: str, where: str, options: ReadOptions) -> Parts:
    """A text without a prompt, all of it trained; of a transcript the assistant's turns."""
    text = read_text(row[column], where, column)
    if not isinstance(text, str):
        return _turns(text, where, column, options)
    if is_blank(text):
        raise InputError(f"{where}:{column}: the text is empty; give it some text")
    if not turns_of(text):
        if options.chat:
            raise InputError(f"{where}:{column}: no dialogue, so --chat can make no messages of it")
        return Parts("", [text], (column,))
    split = split_first(text) if options.train_on == "all" else split_last(text)
    if is_blank(text[split:]):
        raise InputError(f"{where}:{column}: the response is empty; give it some text")
    return Parts(text[:split], [text[split:]], (column,))


def _conversation(
    row: Mapping[str, object], column: str, where: str, options: ReadOptions
) -> Parts:
    messages = read_text(row[column], where, column)
    if not isinstance(messages, str):
        return _turns(messages, where, column, options)
    if not turns_of(messages):
        raise InputError(f"{where}:{column}: a string, and no dialogue; give a list of messages")
    return _plain_text(row, column, where, options)


def _turns(messages: Messages, where: str, column: str, options: ReadOptions) -> Parts:
    """A conversation: the prompt is what precedes the first turn that is trained.

    An assistant's turn before any of the user answers nothing, and is not trained. What follows the
    assistant's last turn trains nothing, and is left out.
    """
    given = len(messages)
    while messages and messages[-1]["role"] != "assistant":
        messages = messages[:-1]
    roles = [message["role"] for message in messages]
    asked = next((i for i, role in enumerate(roles) if role in ("user", "tool")), len(roles))
    answers = [i for i, role in enumerate(roles) if role == "assistant" and i > asked]
    if not answers:
        raise InputError(f"{where}:{column}: no answer of the assistant to a user; remove the row")
    first = answers[0] if options.train_on == "all" else answers[-1]
    for message in messages[first:]:
        if message["role"] == "assistant" and _is_empty(message):
            raise InputError(f"{where}:{column}: the response is empty; give it some text")
    unanswered = len(messages) < given
    return Parts(messages[:first], [messages[first:]], (column,), unanswered=unanswered)


# ------------------------------------------------------------------------------ single values


def _response(row: Mapping[str, object], column: str, where: str) -> Text:
    text = read_text(row[column], where, column)
    if isinstance(text, str):
        empty = is_blank(text)
    else:
        if text[-1]["role"] != "assistant":
            raise InputError(
                f"{where}:{column}: the last message is the {text[-1]['role']}'s;"
                " end with one of the assistant"
            )
        empty = _is_empty(text[-1])
    if empty:
        raise InputError(f"{where}:{column}: the response is empty; give it some text")
    return text


def _is_empty(message: Mapping[str, Any]) -> bool:
    return is_blank(message["content"] or "") and not message.get("tool_calls")


def _margin(row: Mapping[str, object], where: str) -> float | None:
    margin = row.get("margin")
    if margin is None:
        return None
    if isinstance(margin, bool) or not isinstance(margin, (int, float)):
        raise InputError(f"{where}:margin: {short(margin)} is not a number; give one or none")
    if not abs(margin) <= LARGEST:
        raise InputError(f"{where}:margin: {short(margin)} is not finite in float32; give a number")
    return float(margin)
