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
* Messages are rendered by the chat template, once for the prompt and once for each whole
  conversation; the template brings its own BOS. White space that a template writes after the last
  special token is dropped. The response ends with what the template renders, plus EOS if EOS is
  not among its trailing special tokens (`<end_of_turn>` then `<eos>` for a Gemma).
* A row longer than `max_length` keeps its start: the response is cut at its end and loses its EOS
  (a cut sentence must not be taught to stop there), and `ends` says so. It is dropped, and counted,
  if the prompt leaves no room for a response token or the cut makes both responses the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from data.errors import USAGE, InputError
from data.rows import Record, Text, common_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = list[int]
CHUNK = 1024  # records tokenised by one call

NO_ROOM = "no room for a response"
TOO_LONG = "longer than max_length"
SAME = "both responses are the same tokens"
SAME_CUT = "both responses are the same once cut"
NO_TOKENS = "a response without tokens"


@dataclass(frozen=True, slots=True)
class Row:
    index: int  # position among the encoded rows: the key of per-row caches
    prompt: Ids  # shared by the responses; never empty
    responses: list[Ids]  # one (prompt/completion) or two (chosen, rejected), none empty
    ends: list[bool]  # per response: its last token is the end token, not where it was cut
    characters: list[int]  # per response: characters, one leading space not counted (acc_norm)
    margin: float = 0.0


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

    @property
    def mean(self) -> float:
        return self.tokens / max(self.rows, 1)

    def line(self, name: str) -> str:
        """`train: 1,138 rows, 61,234 tokens; 3 truncated to 1024 tokens; 1 dropped (...)`."""
        parts = [f"{name}: {self.rows:,} row{'s' * (self.rows != 1)}, {self.tokens:,} tokens"]
        if self.truncated:
            parts.append(f"{self.truncated:,} truncated to {self.max_length} tokens")
        parts += [f"{count:,} dropped ({reason})" for reason, count in self.dropped.items()]
        if self.shifted:
            parts.append(f"{self.shifted:,} split before the prompt's end (merged tokens)")
        return "; ".join(parts)


@dataclass(slots=True)
class Encoded:
    rows: list[Row]
    report: EncodeReport
    source: list[int]  # source[row.index] is the record the row was made from


def encode_records(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int = 1024,
    overlong: Literal["truncate", "drop"] = "truncate",
) -> Encoded:
    """Encode records by the rules above; `overlong="drop"` drops every row it would have cut."""
    if max_length < 2:
        raise InputError(f"max_length {max_length} leaves no room; give at least 2", USAGE)
    encoded = Encoded([], EncodeReport(max_length, len(records)), [])
    report = encoded.report
    split = _Split(tokenizer)
    for number, (prompt, responses, shifted) in enumerate(split(records)):
        record = records[number]
        room = max_length - len(prompt)
        over = any(len(response) > room for response in responses)
        if not all(responses):
            reason = NO_TOKENS
        elif _same(responses):
            reason = SAME
        elif over and overlong == "drop":
            reason = TOO_LONG
        elif room < 1:
            reason = NO_ROOM
        elif _same([response[:room] for response in responses]):
            reason = SAME_CUT
        else:
            ends = [len(response) <= room for response in responses]
            responses = [response[:room] for response in responses]
            texts = [record.chosen] + ([] if record.rejected is None else [record.rejected])
            characters = [_characters(text) for text in texts]
            margin = record.margin or 0.0
            row = Row(len(encoded.rows), prompt, responses, ends, characters, margin)
            encoded.rows.append(row)
            encoded.source.append(number)
            report.rows += 1
            report.truncated += over
            report.shifted += shifted
            report.tokens += len(prompt) + sum(map(len, responses))
            report.longest = max(report.longest, len(prompt) + max(map(len, responses)))
            continue
        report.dropped[reason] += 1
    if not encoded.rows:
        why = ", ".join(f"{count:,} {reason}" for reason, count in report.dropped.items())
        raise InputError(
            f"none of {len(records):,} rows is left ({why or 'there were none'});"
            f" give other data or a max_length above {max_length}"
        )
    return encoded


class _Split:
    """Tokenise records and split them into prompt and responses, the EOS put on."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        if tokenizer.eos_token_id is None:
            raise InputError(
                "the tokenizer has no eos_token, so no response could end;"
                " set eos_token in its tokenizer_config.json",
                USAGE,
            )
        self.eos = int(tokenizer.eos_token_id)
        self.bos = None if tokenizer.bos_token_id is None else int(tokenizer.bos_token_id)
        self.root = self.eos if self.bos is None else self.bos
        added = tokenizer.added_tokens_decoder
        special = {i: str(token) for i, token in added.items() if token.special}
        special |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
        self.special_ids = frozenset(special)
        self.special_texts = tuple(special.values())
        # What the tokenizer puts behind a text by itself: mostly nothing, [EOS] or [SEP] for some.
        bare, framed = self._tokenize(["a"], False)[0], self._tokenize(["a"], True)[0]
        n = len(bare)
        starts = [i for i in range(len(framed) - n + 1) if framed[i : i + n] == bare]
        self.after = framed[starts[0] + n :] if starts else []

    def __call__(self, records: Sequence[Record]) -> Iterator[tuple[Ids, list[Ids], bool]]:
        """Yield (prompt, responses, whether the split lies before the prompt's end) a record."""
        for start in range(0, len(records), CHUNK):
            chunk = records[start : start + CHUNK]
            texts = [self._texts(record) for record in chunk]
            chats = [not isinstance(record.chosen, str) for record in chunk]
            ids: dict[bool, Iterator[Ids]] = {}
            for chat in set(chats):
                flat = [
                    t for group, c in zip(texts, chats, strict=True) if c == chat for t in group
                ]
                ids[chat] = iter(self._tokenize(flat, special=not chat))
            for record, group, chat in zip(chunk, texts, chats, strict=True):
                yield self._split([next(ids[chat]) for _ in group], chat, record.where)

    def _split(self, group: list[Ids], chat: bool, where: str) -> tuple[Ids, list[Ids], bool]:
        if not chat:
            group = [self._unframe(ids) for ids in group]
        alone, wholes = group[0], group[1:]
        split = common_prefix(group)
        if chat and split == 0:
            raise InputError(
                f"{where}:prompt: the chat template renders the prompt otherwise once a response"
                " follows it; give prompt and responses as strings, or another template"
            )
        responses = [ids[split:] for ids in wholes]
        responses = [self._end(ids, chat) if ids else ids for ids in responses]
        return alone[:split] or [self.root], responses, split < len(alone)

    def _unframe(self, ids: Ids) -> Ids:
        """Without what the tokenizer adds at the end, and without a second BOS (B7)."""
        if self.after and ids[-len(self.after) :] == self.after:
            ids = ids[: -len(self.after)]
        return ids[1:] if ids[:2] == [self.bos, self.bos] else ids

    def _end(self, response: Ids, chat: bool) -> Ids:
        """The response with exactly one EOS at its end, be it from the text or put on here."""
        tail = len(response)
        while chat and tail > 0 and response[tail - 1] in self.special_ids:
            tail -= 1
        if tail == 0:  # nothing but what the template writes
            return []
        if self.eos in response[tail:]:
            return response[: response.index(self.eos, tail) + 1]
        return response if response[-1] == self.eos else [*response, self.eos]

    def _texts(self, record: Record) -> list[str]:
        """The prompt alone, then prompt + response for each response."""
        responses = [record.chosen] + ([] if record.rejected is None else [record.rejected])
        if isinstance(record.prompt, str):
            return [record.prompt] + [record.prompt + _plain(r, record) for r in responses]
        prompt = self._render(record.prompt, record.where, "prompt", ask=True)
        names = ("chosen", "rejected")
        return [prompt] + [
            self._render(record.prompt + _messages(r, record), record.where, name, ask=False)
            for r, name in zip(responses, names, strict=False)
        ]

    def _render(self, messages: list[dict[str, str]], where: str, column: str, ask: bool) -> str:
        from jinja2 import TemplateError

        if not self.tokenizer.chat_template:
            raise InputError(
                f"{where}:{column}: these are chat messages and the tokenizer has no chat template;"
                " take an instruct model's tokenizer, or give prompt and responses as strings"
            )
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=ask
            )
        except (TemplateError, TypeError, KeyError) as error:
            raise InputError(
                f"{where}:{column}: the chat template refuses these messages"
                f" ({' '.join(str(error).split())}); change them or the template"
            ) from error
        text = str(text)
        stripped = text.rstrip()
        return stripped if not ask and stripped.endswith(self.special_texts) else text

    def _tokenize(self, texts: list[str], special: bool) -> list[Ids]:
        batch = self.tokenizer(
            texts,
            add_special_tokens=special,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return [list(ids) for ids in batch["input_ids"]]


def _same(responses: list[Ids]) -> bool:
    return len(responses) == 2 and responses[0] == responses[1]


def _characters(text: Text) -> int:
    if isinstance(text, str):
        return len(text) - text.startswith(" ")
    return sum(len(message["content"]) for message in text)


def _plain(response: Text, record: Record) -> str:
    if not isinstance(response, str):
        raise InputError(f"{record.where}: a string prompt with messages after it; make both alike")
    return response


def _messages(response: Text, record: Record) -> list[dict[str, str]]:
    if isinstance(response, str):
        raise InputError(f"{record.where}: a chat prompt with a string after it; make both alike")
    return response
