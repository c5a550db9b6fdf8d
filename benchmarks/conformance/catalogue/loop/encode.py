"""Text becomes tokens: what is trained, where a response begins and ends, and what is too long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.conformance.catalogue.loop.base import Seen, in_the_loop
from benchmarks.conformance.catalogue.loop.words import END, tokenizer
from data import encode
from data.encode import Encoded, Row
from data.rows import Record, Text

ENCODE = "data.encode:encode_records"
SOUP = Record("how do I carry soup to the table?", " A bowl will do.", " A table will do.")
SHORT = Record("how do I carry soup?", " A bowl will do.", " A table.")
LONG = Record("how do I carry soup?", " A bowl will do.", " A bowl" + " will do" * 9)


def one_record(*, prompt: Text, chosen: Text, trained: str, asked: str) -> list[Seen]:
    """A prompt and its response: the text before the split, and the trained tokens one by one."""
    row = encode.encode_records([Record(prompt, chosen, None)], tokenizer()).rows[0]
    return [
        Seen("in front of the split", asked, decoded(row.prompt)),
        Seen("trained", trained.split("|"), [decoded([token]) for token in row.responses[0]]),
    ]


def decoded(tokens: Sequence[int]) -> str:
    return str(tokenizer().decode(list(tokens), clean_up_tokenization_spaces=False))


WORDS: dict[str, Any] = dict(
    prompt=SOUP.prompt, chosen=SOUP.chosen, asked=SOUP.prompt, trained=f" A| bowl| will| do|.|{END}"
)
CHAT: dict[str, Any] = dict(
    prompt=[{"role": "user", "content": "soup?"}],
    chosen=[{"role": "assistant", "content": "A bowl"}],
    asked=f"user: soup?{END}assistant:",
    trained=f" A| bowl|{END}",
)
MERGED: dict[str, Any] = dict(
    prompt="Answer: ", chosen="A bowl", asked="Answer:", trained=f" A| bowl|{END}"
)


def cut_rows(*, overlong: str = "truncate") -> list[Seen]:
    """Three rows at a max_length of 13: one fits, one is cut, one has no room for a response."""
    records = [SHORT, LONG, Record("soup " * 20, " A bowl", " A table")]
    encoded = encode.encode_records(records, tokenizer(), max_length=13, overlong=overlong)  # type: ignore[arg-type]
    rows = encoded.rows
    end = tokenizer().eos_token_id
    kept = [0] if overlong == "drop" else [0, 1]
    return [
        Seen("records kept", kept, encoded.source),
        Seen(
            "longest within 13",
            True,
            13 >= max(len(r.prompt) + len(a) for r in rows for a in r.responses),
        ),
        Seen("prompts", [records[i].prompt for i in kept], [decoded(r.prompt) for r in rows]),
        Seen(
            "responses that end with the end token",
            [[True, True], [True, False]][: len(kept)],
            [[a[-1:] == [end] for a in row.responses] for row in rows],
        ),
        Seen("dropped", 3 - len(kept), sum(encoded.report.dropped.values())),
    ]


@in_the_loop("B6", "data.encode:_Split._end", one_record, **WORDS)
def no_end_token(right: Any, self: Any, response: list[int], chat: bool) -> list[int]:
    """Nothing is put behind the response: the model is never taught to stop."""
    return response


@in_the_loop("B7", "data.encode:_Split._end", one_record, **CHAT)
def end_token_always_appended(right: Any, self: Any, response: list[int], chat: bool) -> list[int]:
    """The end token is appended although the chat template has written it: the model learns to end
    twice."""
    return [*response, self.eos]


@in_the_loop("B8", "data.encode:_Split._split", one_record, **MERGED)
def cut_at_the_prompts_own_length(right: Any, self: Any, group: Any, *rest: Any) -> Any:
    """The whole is cut at the length that the prompt has alone: where a token reaches over the
    border, the response loses its first one."""
    alone, *wholes = group
    return alone, [self._end(ids[len(alone) :], False) for ids in wholes], False


@in_the_loop("B23", "data.encode:_Split._split", one_record, **MERGED)
def tokenised_apart(right: Any, self: Any, group: Any, *rest: Any) -> Any:
    """Prompt and response are tokenised one by one and joined: other tokens than the text has."""
    alone, *wholes = group
    text = self.tokenizer.decode(alone)
    parts = [self.tokenizer.decode(ids)[len(text) :] for ids in wholes]
    return alone, [self._end(self._tokenize([part], False)[0], False) for part in parts], False


def far(right: Any, records: Any, tokenizer: Any, **options: Any) -> Encoded:
    """Encoded without a limit; who cuts then, cuts by himself."""
    return right(records, tokenizer, max_length=10**6)  # type: ignore[no-any-return]


def again(encoded: Encoded, rows: list[Row]) -> Encoded:
    """The same with other rows."""
    return Encoded(rows, encoded.report, [encoded.source[row.index] for row in rows])


@in_the_loop("B12", ENCODE, cut_rows)
def the_end_is_kept(right: Any, records: Any, tokenizer: Any, *, max_length: int, **_: Any) -> Any:
    """Rows are cut to their last max_length tokens: the prompt loses its start, or all of it."""
    encoded = far(right, records, tokenizer)
    rows = []
    for row in encoded.rows:
        over = max(len(row.prompt) + len(a) - max_length for a in row.responses)
        prompt = row.prompt[max(over, 0) :]
        cut = [a[-max_length:] for a in row.responses]
        rows.append(Row(row.index, prompt, cut, row.ends, row.characters))
    return again(encoded, rows)


@in_the_loop("B13", ENCODE, cut_rows)
def kept_without_a_response(
    right: Any, records: Any, tokenizer: Any, *, max_length: int, **_: Any
) -> Any:
    """A prompt that fills max_length stays in the batch with an empty response: a constant ln 2, or
    0/0 where a mean is taken."""
    encoded = far(right, records, tokenizer)
    rows = []
    for row in encoded.rows:
        prompt = row.prompt[:max_length]
        room = max_length - len(prompt)
        cut = [a[:room] for a in row.responses]
        rows.append(Row(row.index, prompt, cut, row.ends, row.characters))
    return again(encoded, rows)


@in_the_loop("B14", ENCODE, cut_rows, overlong="drop")
def rejected_not_measured(
    right: Any, records: Any, tokenizer: Any, *, max_length: int, **_: Any
) -> Any:
    """The length filter looks at the chosen response alone: a long rejected one is let through."""
    encoded = far(right, records, tokenizer)
    short = [r for r in encoded.rows if len(r.prompt) + len(r.responses[0]) <= max_length]
    return again(encoded, short)


@in_the_loop("B24", ENCODE, cut_rows)
def end_token_on_the_cut(right: Any, records: Any, tokenizer: Any, **options: Any) -> Any:
    """The last token of a response that was cut is overwritten with the end token: the model is
    taught to stop in mid-sentence."""
    encoded = right(records, tokenizer, **options)
    for row in encoded.rows:
        for answer in row.responses:
            answer[-1] = tokenizer.eos_token_id
    return encoded
