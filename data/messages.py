"""Chat messages, in every spelling that data sets have, as Hugging Face's {role, content, ...}.

    {"role": "user", "content": "hi"}                  as it is, with all its other keys
    {"from": "human", "value": "hi"}                   ShareGPT's keys and names of the roles
    '[{"role": "user", "content": "hi"}]'              JSON in a string, as a CSV file holds it
    {"role": "user", "content": [{"type": "text", "text": "hi"}]}      parts, all of them text

A key that is null is dropped (parquet gives every message the keys of all others). What is none of
this is refused, and never taken for text.
"""

from __future__ import annotations

import json
import re
from typing import Any
from unicodedata import category

from data.errors import InputError
from data.readers import short

Messages = list[dict[str, Any]]
Text = str | Messages  # a string, or chat messages

ROLES = ("system", "developer", "user", "assistant", "tool")
OTHER_ROLES = {  # ShareGPT's and other data sets' names
    **dict.fromkeys(("human", "prompter", "instruction"), "user"),
    **dict.fromkeys(
        ("gpt", "model", "bot", "ai", "chatgpt", "chatbot", "bing", "bard"), "assistant"
    ),
    **dict.fromkeys(("observation", "tool_response", "function", "function_response"), "tool"),
}
# A string that is a list of messages written down, by JSON, by Python or by numpy.
WRITTEN_DOWN = re.compile(r"""^\s*(?:\[\s*|array\(\s*\[\s*)?\{\s*['"](\w+)['"]\s*:""")
MESSAGE_KEYS = {"role", "content", "from", "value"}
FILLERS = "\u115f\u1160\u2800\u3164\uffa0"  # letters and signs that are blank
ROLE, CONTENT = ("role", "from"), ("content", "value")


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: white space, zero-width characters, byte order marks."""
    return all(c.isspace() or c in FILLERS or category(c) in ("Cc", "Cf") for c in text.strip())


def read_text(value: object, where: str, column: str) -> Text:
    """A string, or the messages that the value holds.

    Raises:
        InputError: it is neither, or messages that cannot be used, naming which.
    """
    if isinstance(value, str):
        found = WRITTEN_DOWN.match(value)
        if not found or found[1] not in MESSAGE_KEYS or not _names_role_and_content(value):
            return check_string(value, where, column)
        try:
            value = json.loads(value)
        except ValueError as error:
            raise InputError(
                f"{where}:{column}: a string that holds messages, but not as JSON ({error});"
                " save the data as JSON lines or parquet, not as CSV"
            ) from error
    if isinstance(value, dict) and any(key in value for key in ROLE):
        value = [value]
    if not isinstance(value, list):
        return check_string(value, where, column)
    if not value:
        raise InputError(f"{where}:{column}: a list without messages; give at least one")
    return [_message(m, where, column, number) for number, m in enumerate(value, 1)]


def _names_role_and_content(text: str) -> bool:
    """Whether both keys of a message are in it, so that other JSON stays the text it is."""
    return any(
        re.search(rf"['\"]{role}['\"]\s*:", text) and re.search(rf"['\"]{content}['\"]\s*:", text)
        for role, content in zip(ROLE, CONTENT, strict=True)
    )


def _message(message: object, where: str, column: str, number: int) -> dict[str, Any]:
    """One message, checked; its role first, then its content, then its other keys."""
    this = f"{where}:{column}: message {number}"
    keys = message if isinstance(message, dict) else {}
    pair = next((pair for pair in zip(ROLE, CONTENT, strict=True) if pair[0] in keys), None)
    calls = keys.get("tool_calls")
    if pair is None or (pair[1] not in keys and not calls):
        raise InputError(
            f"{this} is not an object with role and content;"
            ' give {"role": ..., "content": ...} or {"from": ..., "value": ...}'
        )
    role, content = keys[pair[0]], keys.get(pair[1])
    known = role.strip().lower() if isinstance(role, str) else ""
    known = OTHER_ROLES.get(known, known)
    if known not in ROLES:
        others = f"{', '.join(ROLES)}, or ShareGPT's human, gpt"
        raise InputError(f"{this} has the role {short(role)}; give one of {others}")
    if isinstance(content, list):
        content = _joined_parts(content, this)
    if content is not None or not calls:
        check_string(content, where, column, f"the content of message {number}, ")
    rest = {k: _without_nulls(v) for k, v in keys.items() if k not in pair and v is not None}
    if twice := MESSAGE_KEYS & set(rest):
        raise InputError(f"{this} has {pair[0]} and {min(twice)}; keep one of the two spellings")
    return {"role": known, "content": content, **rest}


def _joined_parts(parts: list[object], where: str) -> str:
    """The text of a content given as a list of parts."""
    texts = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str) or kind not in ("text", "str"):
            raise InputError(
                f"{where} has a part of type {short(kind)}, and only text can be trained on;"
                " leave such rows out"
            )
        texts.append(text)
    return "".join(texts)


def _without_nulls(value: Any) -> Any:
    """Without the keys that parquet fills with null, at any depth."""
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value


def read_tools(value: object, where: str) -> list[Any] | None:
    """The tools of a row: a list of JSON schemas, or that list as a string of JSON."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError as error:
            raise InputError(f"{where}:tools: not JSON ({error}); give a list of tools") from error
    if value is None or value == [] or value == "":
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise InputError(f"{where}:tools: {short(value)} is not a list of objects; give one")
    return [_without_nulls(tool) for tool in value]


def read_template_kwargs(value: object, where: str) -> dict[str, Any]:
    """The variables that a row has for the chat template, such as {"enable_thinking": false}."""
    column = "chat_template_kwargs"
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError as error:
            raise InputError(f"{where}:{column}: not JSON ({error}); give an object") from error
    if value is None or value == "":
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{where}:{column}: {short(value)} is not an object; give one")
    return {k: v for k, v in value.items() if v is not None}


def check_string(value: object, where: str, column: str, what: str = "") -> str:
    """The value if it is a string that can be text."""
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


def text_of(text: Text) -> str:
    """All that a text says: of messages the contents, a line each."""
    if isinstance(text, str):
        return text
    return "\n".join(message["content"] or "" for message in text)
