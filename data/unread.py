"""The columns of a row that nothing reads: reported, or refused if they were meant to be read.

Meant to be read are a part of the prompt that the record does not hold, and a verdict on the one
response there is. `--columns` says what reads such a column, `--ignore` that it is to be left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from data.errors import InputError
from data.formats import ALWAYS, IMPLICIT, RowFormat
from data.messages import read_text, text_of
from data.options import ReadOptions
from data.readers import short
from data.rows import Record

# Columns that carry a part of what the model is to be told, and how each is read.
SYSTEM = ("system", "systemprompt", "systemmessage", "sys")
ASKED = (
    *("prompt", "question", "query", "instruction", "instructions", "goal", "problem", "task"),
    *("user", "human", "post", "usermessage", "userprompt", "userinput", "request", "premise"),
)
GIVEN = (
    *("input", "inputs", "context", "contexts", "history", "passage", "document", "documents"),
    *("article", "background", "persona", "scenario", "examples", "fewshot", "references"),
)
DIALOGUE = ("messages", "conversation", "conversations", "dialog", "dialogue", "turns", "chat")
TOOLS = ("tools", "functions", "toolschemas", "apis")
MEDIA = ("image", "images", "audio", "audios", "video", "videos", "pixelvalues")
CARRIERS = (*SYSTEM, *ASKED, *GIVEN, *DIALOGUE, *TOOLS, *MEDIA)

# Columns that say whether the one response is a good one.
VERDICT_NAMES = ("label", "labels", "ktotag", "desirable", "isdesirable", "winner", "preferred")
VERDICT_PARTS = re.compile("label|tag|desir|good|bad|accept|reject|prefer|thumb|like|correct|vote")
VERDICTS = {
    *("true", "false", "0", "1", "-1", "yes", "no", "good", "bad", "desirable", "undesirable"),
    *("chosen", "rejected", "positive", "negative", "up", "down", "correct", "incorrect"),
}


@dataclass
class Unread:
    """The columns of a part that nothing reads, found row by row."""

    row_format: RowFormat
    options: ReadOptions
    taken: frozenset[str] = frozenset()  # read by something else, such as a reward function
    names: dict[str, None] = field(default_factory=dict)  # in the order they were found
    rows: int = 0
    empty_prompts: int = 0
    prose: dict[str, int] = field(default_factory=dict)  # rows in which a column is sentences
    chats: int = 0  # rows of messages, which hold their prompt

    def check(self, row: Mapping[str, object], record: Record) -> None:
        """Note what of `row` the record was not made of.

        Raises:
            InputError: it is a part of the prompt that the record does not hold, or a verdict.
        """
        self.rows += 1
        said = _squeezed("\n".join(text_of(t) for t in (record.prompt, *record.responses)))
        read = self.read(row)
        lost: dict[str, str] = {}
        for name, value in row.items():
            if name in read or name in self.options.ignore or _is_blank(value):
                continue
            key = re.sub(r"[^a-z0-9]", "", name.lower())
            carries = key in CARRIERS and not _is_said(value, said, record.where, name)
            if key in DIALOGUE and self.row_format is IMPLICIT and not carries:
                continue  # the prompt of chosen and rejected
            self.names[name] = None
            if self.row_format.responses == 1 and _is_verdict(key, value):
                raise InputError(
                    f"{record.where}:{name}: rows marked good and bad one by one (unpaired"
                    f" preferences, {name} {short(value)}) fit no loss here; keep the good rows"
                    f" without it, pair them, or --ignore {name} to train on all of them"
                )
            if carries:
                lost[name] = key
            if isinstance(value, str) and " " in value.strip() and _squeezed(value) not in said:
                self.prose[name] = self.prose.get(name, 0) + 1
        if lost:
            # The question first, where it is the prompt that is missing.
            first = min(lost, key=lambda name: lost[name] not in ASKED)
            others = ", ".join(name for name in lost if name != first)
            also = f" (not read either: {others})" if others else ""
            raise InputError(f"{record.where}:{first}: {self._way_in(first, lost[first])}{also}")
        self.chats += not isinstance(record.prompt, str)
        self.empty_prompts += isinstance(record.prompt, str) and not record.prompt.strip()

    def finish(self, name: str) -> None:
        """After the last row.

        Raises:
            InputError: the prompt was to be what both responses begin with, and most begin with
                nothing alike, or a column of sentences stands unread beside them.
        """
        if self.row_format is not IMPLICIT or not self.rows:
            return
        beside = [column for column, count in self.prose.items() if 2 * count > self.rows]
        if 2 * self.empty_prompts > self.rows:
            hint = f"--columns prompt={beside[0] if beside else 'COLUMN'}"
            raise InputError(
                f"{name}: there is no prompt column, and in {self.empty_prompts:,} of"
                f" {self.rows:,} rows chosen and rejected do not begin alike, so there is no prompt"
                f" at all; name the column that is it: {hint}"
            )
        if beside and not self.chats:
            raise InputError(
                f"{name}: {beside[0]}: a text column that nothing reads, where the prompt is only"
                f" what chosen and rejected begin with; --columns prompt={beside[0]}, or --ignore"
                f" {beside[0]}"
            )

    def read(self, row: Mapping[str, object]) -> set[str]:
        """The columns of a row that are read: by the format, by --columns, by whatever else."""
        named = self.options.columns
        replaced = {ours for ours, theirs in named.items() if all(name in row for name in theirs)}
        ours = {*self.row_format.columns, *self.row_format.optional, *ALWAYS} - replaced
        return ours | {name for names in named.values() for name in names} | self.taken

    def note(self) -> list[str]:
        return [f"columns not read: {', '.join(self.names)}"] if self.names else []

    def _way_in(self, name: str, key: str) -> str:
        """What is wrong with not reading it, and the flag that would read it."""
        to_ignore = f"or --ignore {name} to leave it out"
        if key in MEDIA:
            return f"images, audio and video cannot be trained on here; {to_ignore}"
        if key in TOOLS:
            return f"nothing reads these tools; --columns tools={name}, {to_ignore}"
        if key in SYSTEM:
            return f"a system prompt that nothing reads; --columns system={name}, {to_ignore}"
        columns = self.row_format.columns
        asks = next((c for c in ("prompt", "instruction") if c in columns), None)
        if key in DIALOGUE or asks is None or (key in ASKED and self.row_format is IMPLICIT):
            return f"a text column that nothing reads; --columns prompt={name}, {to_ignore}"
        theirs = "+".join(self.options.columns.get(asks, (asks,)))
        way_in = f"--columns {asks}={theirs}+{name}"
        return f"a part of the prompt that nothing reads; {way_in}, {to_ignore}"


def _is_verdict(key: str, value: object) -> bool:
    if isinstance(value, (list, dict)):
        return False
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    verdict = str(value).strip().lower() in VERDICTS
    return key in VERDICT_NAMES or (verdict and VERDICT_PARTS.search(key) is not None)


def _is_blank(value: object) -> bool:
    return value is None or value in ([], {}) or (isinstance(value, str) and not value.strip())


def _is_said(value: object, said: str, where: str, name: str) -> bool:
    """Whether a value's text is in the record's already, as UltraFeedback's `messages` are."""
    if not isinstance(value, (str, list)):
        return isinstance(value, (bool, int, float))  # a number of something
    try:
        text = read_text(value, where, name)
    except InputError:
        return False
    parts: Iterable[str] = [text] if isinstance(text, str) else [m["content"] or "" for m in text]
    return all(_squeezed(part) in said for part in parts)


def _squeezed(text: str) -> str:
    return "".join(text.split())
