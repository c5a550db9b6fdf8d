"""Prompts without responses, for rollouts: from a `prompt` column, or whatever else has one.

Where a row has a `prompt`, or PIQA's `goal`, its responses are not looked at. Otherwise the prompt
is the one that another loss would find in it: what chosen and rejected begin with, a conversation
up to the assistant's last turn, an Alpaca instruction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from data.chat import ChatTemplate
from data.encode import encode_records
from data.errors import BAD_DATA, USAGE, InputError
from data.formats import COMPLETION, CONVERSATIONS, PIQA, RowFormat, mapped, row_format_of
from data.messages import Messages, Text, is_blank, read_text
from data.options import ReadOptions
from data.readers import Found
from data.records import check_skipped, hold_out, skipped_note, weighted
from data.rows import AFTER_GOAL, BEFORE_GOAL, Record, make_record
from data.sources import Part, Source, open_sources
from data.unread import Unread

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STAND_IN = " a"  # where a record needs a response
MOST_HELD_OUT = 500
PROMPT = RowFormat(("prompt",), 0)
GOAL = RowFormat(("goal",), 0, PIQA.columns)
OF_THE_TEMPLATE = ("tools", "chat_template_kwargs")
MISSING = "missing; give `prompt`, or PIQA's `goal`, or name yours: --columns prompt=COLUMN"


class TakenColumns(NamedTuple):
    """The columns of a prompt's row that a reward function takes, as keyword arguments."""

    by: str = ""  # "--reward my_rewards:exact", for messages
    required: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    everything: bool = False  # it has **kwargs
    reserved: frozenset[str] = frozenset(("prompts", "responses"))  # names of what it is given

    def of(self, row: Mapping[str, object], where: str, *, first: bool) -> dict[str, object]:
        """Those of one row.

        Raises:
            InputError: one is not there that it cannot do without, or two would have one name.
        """
        if missing := sorted(self.required - set(row)):
            there = f"the columns there are: {', '.join(row)}" if row else "it has no other columns"
            raise InputError(
                f"{self.by}: the function takes {missing[0]}, and {where} has no such column"
                f" ({there}); rename one, or give the parameter a default",
                USAGE if first else BAD_DATA,
            )
        named = self.required | self.optional
        names = [name for name in row if self.everything or name in named]
        if clash := self.reserved & set(names):
            raise InputError(
                f"{self.by}: {where} has a column {min(clash)}, and the function is given"
                " something else by that name; rename the column",
                USAGE,
            )
        return {name: row[name] for name in names}


def load_prompts(
    source: str,
    seed: int,
    *,
    eval_data: str | None = None,
    options: ReadOptions = ReadOptions(),  # noqa: B008  (frozen)
    taken: TakenColumns = TakenColumns(),  # noqa: B008
) -> tuple[list[Record], list[Record], str]:
    """(prompts to sample for, held-out prompts, one line on where they are from).

    Each comes once, as a record whose response is only there to stand for one, and whose columns
    are those that the reward function takes: rows that differ in one of these are two prompts. Held
    out are the prompts of `eval_data`, else the source's own validation part, or a tenth.

    Raises:
        InputError: a row without a prompt, naming it, or without a column that must be there.
    """
    reader = _Reader(options, taken)
    sources = _open(source, options)
    parts = [(found.train, found.weight) for found in sources if found.train is not None]
    others = [found.heldout for found in sources if found.heldout is not None]
    if not parts:
        parts, others = [(part, 1.0) for part in others], []
    if eval_data is not None:
        evaluated = _open(eval_data, replace(options, split=None))
        others = [part for found in evaluated if (part := found.heldout or found.train) is not None]
    known: set[str] = set()
    read = [reader.read(part, known) for part, _ in parts]
    known = set()
    heldout = [record for part in others for record in reader.read(part, known)]
    if not others:
        _, heldout = hold_out([r for records in read for r in records], MOST_HELD_OUT, seed)
    drawn = {id(record) for record in heldout}
    train = [
        record
        for (part, weight), records in zip(parts, read, strict=True)
        for record in weighted(
            [r for r in records if id(r) not in drawn], weight, f"{seed}/{part.name}"
        )
    ]
    description = f"{len(train):,} prompts of {source}; {len(heldout):,} held out"
    seen = {repr(record.prompt) for record in train}
    if overlap := sum(repr(record.prompt) in seen for record in heldout):
        description += f" ({overlap:,} of them also in train)"
    # What some rows lack is None in these.
    names = {name: None for record in [*train, *heldout] for name in record.columns}
    train, heldout = (
        [replace(record, columns=names | dict(record.columns)) for record in part]
        for part in (train, heldout)
    )
    return train, heldout, "; ".join([description, *reader.notes])


def _open(source: str, options: ReadOptions) -> list[Source]:
    if source != "pocket":
        return open_sources(source, split=options.split, pairs=False)
    from data import pocket  # which has more prompts than pairs

    asked = pocket.train_prompts(), pocket.heldout_prompts()
    rows: list[list[Found]] = [[("pocket", {"prompt": text}) for text in part] for part in asked]
    return [Source(Part("pocket", rows[0]), Part("pocket", rows[1]))]


@dataclass(frozen=True)
class _Reader:
    options: ReadOptions
    taken: TakenColumns
    notes: list[str] = field(default_factory=list)  # on the parts read

    def read(self, part: Part, known: set[str]) -> list[Record]:
        """A record of each prompt that is not yet known."""
        options, taken = self.options, self.taken
        records: list[Record] = []
        skipped: list[InputError] = []
        unread: Unread | None = None
        count = 0
        for where, found in part.rows:
            row = mapped(found, options, where)
            if unread is None:  # the first row's columns make the format of all
                row_format = _format_of(row, where, options)
                pairs = row_format.responses == 2
                judged = row_format if pairs else row_format._replace(responses=0)
                unread = Unread(judged, options, taken.required | taken.optional)
            try:
                record = _read(row, where, row_format, options)
                unread.check(found, record)  # which may know where the prompt is
                if isinstance(record.prompt, str) and is_blank(record.prompt):
                    raise InputError(f"{where}:prompt: {MISSING}")
                columns = taken.of(_others(found, row, record), where, first=not count)
            except InputError as error:
                if options.bad_rows == "stop" or error.exit_code == USAGE:
                    raise
                skipped.append(error)
                continue
            count += 1
            asked = (record.prompt, record.tools, record.template_kwargs, sorted(columns.items()))
            if repr(asked) not in known:
                known.add(repr(asked))
                records.append(replace(record, columns=columns))
        assert unread is not None, "a file without rows is refused when it is read"
        check_skipped(skipped, count, part.name)
        unread.finish(part.name)
        self.notes.extend(f"{part.name}: {note}" for note in skipped_note(skipped))
        if not taken.everything:
            self.notes.extend(f"{part.name}: {note}" for note in unread.note())
        return records


def _others(
    found: Mapping[str, object], row: Mapping[str, object], record: Record
) -> dict[str, object]:
    """A row's columns beside the prompt, as they are; the template's as they were understood."""
    columns = {name: value for name, value in found.items() if name != "prompt"}
    values = (record.tools, dict(record.template_kwargs) or None)
    return columns | {n: v for n, v in zip(OF_THE_TEMPLATE, values, strict=True) if n in row}


def _format_of(row: Mapping[str, object], where: str, options: ReadOptions) -> RowFormat:
    """The format of another loss that a row's columns make it, or of a prompt alone."""
    try:
        found = row_format_of(row, where, False, options)
    except InputError:
        found = PROMPT
    if found is PIQA or (found is PROMPT and "prompt" not in row and "goal" in row):
        return GOAL
    return found


def _read(
    row: Mapping[str, object], where: str, row_format: RowFormat, options: ReadOptions
) -> Record:
    """The prompt of one row; it may be empty if it is what two texts begin with."""
    options = replace(options, train_on="last")
    if row_format is GOAL:
        goal = row.get("goal")
        prompt: object = f"{BEFORE_GOAL}{goal}{AFTER_GOAL}"
        if not isinstance(goal, str) or is_blank(goal):
            prompt = None
    elif row_format is PROMPT or not _is_elsewhere(row, where, row_format):
        prompt = row.get("prompt")
    elif row_format in CONVERSATIONS and (asked := _asked(row, where, row_format)) is not None:
        prompt = asked
    else:
        record = make_record(row, where, row_format, options)
        chat = not isinstance(record.prompt, str)
        answer: Text = [{"role": "assistant", "content": STAND_IN}] if chat else STAND_IN
        return replace(record, chosen=answer, rejected=None, margin=None, label=None)
    if not prompt or (isinstance(prompt, str) and is_blank(prompt)):
        raise InputError(f"{where}:prompt: {MISSING}")
    wanted = {name: row[name] for name in ("system", *OF_THE_TEMPLATE) if name in row}
    alone = {"prompt": prompt, "completion": STAND_IN} | wanted
    return make_record(alone, where, COMPLETION, options)


def _is_elsewhere(row: Mapping[str, object], where: str, row_format: RowFormat) -> bool:
    """Whether the prompt is to be found in the other columns.

    So it is where there is no `prompt`, and where that is a string that messages beside it ask
    again, as in UltraFeedback: the messages are what is trained on.
    """
    if (prompt := row.get("prompt")) is None:
        return True
    responses = row_format.columns[-row_format.responses :]
    given = [(row[column], column) for column in responses if row.get(column) is not None]
    return isinstance(prompt, str) and any(
        not isinstance(read_text(value, where, column), str) for value, column in given
    )


def _asked(row: Mapping[str, object], where: str, row_format: RowFormat) -> Messages | None:
    """A conversation without the answer that it ends with, if it does; None for a transcript."""
    column = row_format.columns[0]
    messages = read_text(row.get(column), where, column)
    if isinstance(messages, str):
        return None
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


@dataclass(frozen=True)
class EncodedPrompts:
    prompts: list[tuple[Record, list[int]]]  # with the tokens that a response goes on from
    no_room: int  # prompts left out, with no room for a response
    skipped: list[InputError]  # that cannot be rendered, left out too


def encode_prompts(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    options: ReadOptions = ReadOptions(),  # noqa: B008  (frozen)
) -> EncodedPrompts:
    """The tokens of each prompt, as they stand before a response in training.

    Of messages they are those of `apply_chat_template(..., add_generation_prompt=True)`.

    Raises:
        InputError: messages that cannot be rendered, or no prompt is left.
    """
    found: dict[int, list[int]] = {}
    strings: list[int] = []
    skipped: list[InputError] = []
    chat = ChatTemplate(tokenizer, options.ignore)
    for number, record in enumerate(records):
        if isinstance(record.prompt, str):
            strings.append(number)
            continue
        try:
            text = chat.prompt(record)
        except InputError as error:
            if options.bad_rows == "stop":
                raise
            skipped.append(error)
            continue
        ids = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        if len(ids) < max_length:
            found[number] = ids
    if strings:
        given = [records[number] for number in strings]
        encoded = encode_records(given, tokenizer, max_length=max_length)
        found |= {strings[encoded.source[row.index]]: row.prompt for row in encoded.rows}
    if not found:
        raise InputError(
            f"none of {len(records):,} prompts is left ({len(records) - len(skipped):,} have no"
            f" room for a response, {len(skipped):,} are bad); give other data or a --max_length"
            f" above {max_length}"
        )
    prompts = [(records[number], found[number]) for number in sorted(found)]
    return EncodedPrompts(prompts, len(records) - len(prompts) - len(skipped), skipped)
