"""Prompts without responses, for rollouts: from a `prompt` column, or PIQA's goals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from data.encode import encode_records
from data.errors import InputError
from data.records import hold_out
from data.rows import Record, Text
from data.sources import Part, open_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_prompts(source: str, seed: int) -> tuple[list[Text], list[Text], str]:
    """(prompts to sample for, held-out prompts, one line on where they are from), all distinct.

    Held out is the source's own validation part, or a tenth of the prompts.

    Raises:
        InputError: a row with neither a prompt nor a goal, naming it.
    """
    if source == "pocket":
        from data.pocket import heldout_prompts, train_prompts

        train, heldout = list(train_prompts()), list(heldout_prompts())
        return list(train), list(heldout), f"{len(train)} and {len(heldout)} questions of pocket"
    found = open_source(source)
    parts = [_read(part) for part in (found.train, found.heldout) if part is not None]
    if len(parts) == 1:
        records = [Record(prompt, "", None, where="") for prompt in parts[0]]
        kept, out = hold_out(records, 500, seed)
        parts = [[record.prompt for record in kept], [record.prompt for record in out]]
    train_prompts_, heldout_ = parts
    told = f"{len(train_prompts_):,} prompts of {source}; {len(heldout_):,} held out"
    return train_prompts_, heldout_, told


def _read(part: Part) -> list[Text]:
    prompts: dict[str, Text] = {}
    for where, row in part.rows:
        prompt = row.get("prompt")
        if isinstance(row.get("goal"), str):
            prompt = f"Question: {row['goal']}\nAnswer:"  # PIQA, as lm-eval words it
        if not prompt or not isinstance(prompt, (str, list)):
            raise InputError(f"{where}:prompt: missing; give `prompt`, or PIQA's `goal`")
        prompts.setdefault(repr(prompt), prompt)
    return list(prompts.values())


def encode_prompts(
    prompts: Sequence[Text], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[tuple[str, list[int]]]:
    """(text, token ids) of each prompt, the ids as they stand before a response in training."""
    answers: list[Text] = [
        " a" if isinstance(prompt, str) else [{"role": "assistant", "content": "a"}]
        for prompt in prompts
    ]
    records = [Record(p, a, None) for p, a in zip(prompts, answers, strict=True)]
    encoded = encode_records(records, tokenizer, max_length=max_length)
    pairs = []
    for row in encoded.rows:
        prompt = prompts[encoded.source[row.index]]
        text = prompt if isinstance(prompt, str) else str(tokenizer.decode(row.prompt))
        pairs.append((text, row.prompt))
    return pairs
