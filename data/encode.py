"""Records become token rows: one shared prompt and one or two responses that continue it.

    record = Record("The sky is", " blue.", " green.")
    text      The sky is blue.          The sky is green.
    prompt    [The, sky, is]            shared, computed once (models/forward)
    responses [[blue, ., EOS], [green, ., EOS]]

The rules, each guarded by a test:

* The whole text is tokenised at once and then split, so that the ids are those of the text. The
  split is the longest common token prefix of the prompt alone and of prompt + response for every
  response. Where a merge crosses the boundary, the first token that differs is the response's.
* One BOS exactly if the tokenizer adds one by itself. What a tokenizer adds at the end is replaced
  by one EOS, which every whole response ends with and which is trained. Nothing is ever decided by
  looking at the pad id, which often is the EOS id.
* A prompt that leaves no token of its own becomes the one token BOS (EOS where there is none), so
  that the first response token has something to be predicted from.
* Messages are rendered by the chat template (data/chat.py), which brings its own BOS. The prompt's
  tokens are those of its rendering alone, as inference has them.
* A response ends with what the template renders, plus EOS if EOS is not among its trailing special
  tokens (`<end_of_turn>` then `<eos>` for a Gemma). An end token inside a response is refused: what
  follows it would be trained as if a text went on after its end.
* Several turns are one response, with a mask that is True on the assistant's tokens alone.
* A row longer than `max_length` keeps its start: the response is cut at its end and loses its EOS
  (a cut sentence must not be taught to stop there), and `ends` says so. It is dropped, and counted,
  if the prompt leaves no room for a response token or the cut makes both responses the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from data.errors import USAGE, InputError
from data.messages import Text
from data.row_table import Row, RowTable, RowTableBuilder
from data.rows import Record
from data.template import DATE, has_date
from data.tokens import Splitter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_ROOM = "no room for a response"
TOO_LONG = "longer than max_length"
SAME = "both responses are the same tokens"
SAME_CUT = "both responses are the same once cut"
NO_TOKENS = "a response without tokens"


@dataclass(slots=True)
class EncodeReport:
    max_length: int
    records: int = 0  # given
    rows: int = 0  # kept
    truncated: int = 0  # kept rows with a cut response
    shifted: int = 0  # kept rows whose split lies inside what the prompt alone tokenises to
    tokens: int = 0  # of the kept rows, each prompt once
    longest: int = 0  # prompt + longer response
    dropped: Counter[str] = field(default_factory=Counter)
    skipped: list[InputError] = field(default_factory=list)  # bad records that were left out
    rewritten: int = 0  # kept rows whose prompt the template writes otherwise before an answer
    rewritten_where: str = ""  # the first of them, and how
    glued: int = 0  # kept rows of strings without white space between prompt and response
    untemplated: int = 0  # kept rows of strings where the tokenizer has a chat template
    special: int = 0  # kept rows with the name of a special token in what the data gives
    special_where: str = ""
    dated: bool = False  # the chat template asked for today's date
    end_tokens: set[int] = field(default_factory=set)  # what whole responses end with

    @property
    def mean(self) -> float:
        return self.tokens / max(self.rows, 1)

    def line(self, name: str) -> str:
        """`train: 1,138 rows, 61,234 tokens; 3 truncated to 1024 tokens; 1 dropped (...)`."""
        parts = [f"{name}: {self.rows:,} row{'s' * (self.rows != 1)}, {self.tokens:,} tokens"]
        if self.truncated:
            parts.append(f"{self.truncated:,} truncated to {self.max_length} tokens")
        parts += [f"{count:,} dropped ({reason})" for reason, count in self.dropped.items()]
        if self.skipped:
            parts.append(f"{len(self.skipped):,} bad skipped, first: {self.skipped[0]}")
        if self.shifted:
            parts.append(f"{self.shifted:,} split before the prompt's end (merged tokens)")
        if self.rewritten:
            parts.append(
                f"{self.rewritten:,} answers put after the prompt that inference renders, which the"
                f" chat template writes otherwise once an answer follows ({self.rewritten_where})"
            )
        if self.glued:
            parts.append(f"{self.glued:,} without white space between prompt and response")
        if self.untemplated:
            parts.append("strings as they are, without the chat template (--chat applies it)")
        if self.special:
            parts.append(
                f"{self.special:,} with special tokens in their texts, which stand for those"
                f" tokens (first: {self.special_where})"
            )
        if self.dated:
            parts.append(f"the date that the chat template writes is always {DATE:%Y-%m-%d}")
        return "; ".join(parts)


@dataclass(slots=True)
class Encoded:
    rows: RowTable
    report: EncodeReport
    source: list[int]  # source[row.index] is the record the row was made from


def encode_records(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int = 1024,
    overlong: Literal["truncate", "drop"] = "truncate",
    bad_rows: Literal["stop", "skip"] = "stop",
    ignore: frozenset[str] = frozenset(),
    sampled: bool = False,
) -> Encoded:
    """Encode records by the rules above.

    Args:
        overlong: "drop" drops every row it would have cut.
        bad_rows: "skip" leaves out records that cannot be rendered, and counts them.
        ignore: message keys that the chat template may pass over.
        sampled: the responses are what a model wrote: without text, or with an end token inside.

    Raises:
        InputError: a record that cannot be rendered, or nothing is left.
    """
    if max_length < 2:
        raise InputError(f"max_length {max_length} leaves no room; give at least 2", USAGE)
    rows, source = RowTableBuilder(), list[int]()
    report = EncodeReport(max_length, len(records))
    skipped = report.skipped if bad_rows == "skip" else None
    split = Splitter(tokenizer, ignore, sampled, skipped)
    for number, part in split(records):
        record = records[number]
        prompt, responses, masks = part.prompt, part.responses, part.masks
        room = max_length - len(prompt)
        over = any(len(response) > room for response in responses)
        cut = [response[: max(room, 0)] for response in responses]
        cut_masks = [mask[: max(room, 0)] for mask in masks]
        if not all(responses) or not all(map(any, masks)):
            reason = NO_TOKENS
        elif _same(responses):
            reason = SAME
        elif over and overlong == "drop":
            reason = TOO_LONG
        elif room < 1 or not all(map(any, cut_masks)):
            reason = NO_ROOM
        elif _same(cut):
            reason = SAME_CUT
        else:
            row = Row(
                index=len(rows),
                prompt=prompt,
                responses=cut,
                ends=[len(response) <= room for response in responses],
                characters=[_characters(text) for text in record.responses],
                margin=record.margin or 0.0,
                masks=None if all(map(all, cut_masks)) else cut_masks,
                where=record.where,
            )
            rows.add(row)
            source.append(number)
            report.rows += 1
            report.truncated += over
            report.shifted += part.shifted
            report.tokens += len(prompt) + sum(map(len, cut))
            report.longest = max(report.longest, len(prompt) + max(map(len, cut)))
            report.end_tokens |= part.ends
            if part.rewritten and not report.rewritten:
                report.rewritten_where = f"{record.where}: {part.rewritten}"
            report.rewritten += bool(part.rewritten)
            report.glued += _glued(record)
            strings = isinstance(record.prompt, str)
            report.untemplated += strings and bool(tokenizer.chat_template)
            if name := split.special_name(record):
                report.special_where = report.special_where or f"{record.where}: {name}"
                report.special += 1
            report.dated |= not strings and has_date(tokenizer)
            continue
        report.dropped[reason] += 1
    if not len(rows):
        why = ", ".join(f"{count:,} {reason}" for reason, count in report.dropped.items())
        if report.skipped:
            why = f"{len(report.skipped):,} bad, the first: {report.skipped[0]}"
        raise InputError(
            f"none of {len(records):,} rows is left ({why or 'there were none'});"
            f" give other data or a max_length above {max_length}"
        )
    return Encoded(rows.build(), report, source)


def _glued(record: Record) -> bool:
    """Whether prompt and response run into one another where a space may be missing."""
    prompt, response = record.prompt, record.chosen
    if not isinstance(prompt, str) or not isinstance(response, str) or not prompt:
        return False
    before, after = prompt[-1], response[:1]
    return before.isascii() and after.isascii() and before not in " \t\n>]" and after.isalnum()


def _same(responses: list[list[int]]) -> bool:
    return len(responses) == 2 and responses[0] == responses[1]


def _characters(text: Text) -> int:
    if isinstance(text, str):
        return len(text) - text.startswith(" ")
    return sum(len(m["content"] or "") for m in text if m["role"] == "assistant")
