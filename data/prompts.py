"""Prompts without responses, for rollouts: from a `prompt` column, or PIQA's goals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from data.encode import encode_records
from data.errors import InputError
from data.formats import COMPLETION, mapped
from data.options import ReadOptions
from data.records import hold_out
from data.rows import Record, make_record
from data.sources import Part, open_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STAND_IN = " a"  # where a record needs a response
MOST_HELD_OUT = 500


def load_prompts(
    source: str,
    seed: int,
    *,
    eval_data: str | None = None,
    options: ReadOptions = ReadOptions(),  # noqa: B008  (frozen)
) -> tuple[list[Record], list[Record], str]:
    """(prompts to sample for, held-out prompts, one line on where they are from).

    Each comes once, as a record whose response is only there to stand for one. Held out are the
    prompts of `eval_data`, else the source's own validation part, or a tenth of the prompts.

    Raises:
        InputError: a row with neither a prompt nor a goal, naming it.
    """
    parts = _parts(source, options)
    if eval_data is not None:
        parts[1:] = _parts(eval_data, options)[-1:]
    train, heldout = parts if len(parts) > 1 else hold_out(parts[0], MOST_HELD_OUT, seed)
    description = f"{len(train):,} prompts of {source}; {len(heldout):,} held out"
    seen = {repr(record.prompt) for record in train}
    overlap = sum(repr(record.prompt) in seen for record in heldout)
    return (
        train,
        heldout,
        description + (f" ({overlap:,} of them also in train)" if overlap else ""),
    )


def _parts(source: str, options: ReadOptions) -> list[list[Record]]:
    """Training and held-out prompts; one part where the source does not tell them apart."""
    if source == "pocket":
        from data import pocket

        asked = pocket.train_prompts(), pocket.heldout_prompts()
        return [[Record(prompt, STAND_IN, None) for prompt in part] for part in asked]
    found = open_source(source)
    return [_read(part, options) for part in (found.train, found.heldout) if part is not None]


def _read(part: Part, options: ReadOptions) -> list[Record]:
    """One record a distinct prompt."""
    records: dict[str, Record] = {}
    for where, found in part.rows:
        row = mapped(found, options, where)
        prompt, goal = row.get("prompt"), row.get("goal")
        if prompt is None and isinstance(goal, str) and goal.strip():
            prompt = f"Question: {goal}\nAnswer:"  # PIQA, as lm-eval words it
        if prompt in (None, "", []):
            raise InputError(f"{where}:prompt: missing; give `prompt`, or PIQA's `goal`")
        record = make_record({"prompt": prompt, "completion": STAND_IN}, where, COMPLETION, options)
        records.setdefault(repr(record.prompt), record)
    return list(records.values())


def encode_prompts(
    prompts: Sequence[Record], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[tuple[str, list[int]]]:
    """(text, token ids) of each prompt, the ids as they stand before a response in training.

    A prompt that leaves no room for one is left out.
    """
    encoded = encode_records(prompts, tokenizer, max_length=max_length)
    pairs = []
    for row in encoded.rows:
        prompt = prompts[encoded.source[row.index]].prompt
        text = prompt if isinstance(prompt, str) else str(tokenizer.decode(row.prompt))
        pairs.append((text, row.prompt))
    return pairs
