"""Which columns make which format of row, and which of a row's columns nothing reads.

    prompt, chosen, rejected          preference; the texts are joined as they are
    chosen, rejected                  preference, the prompt being what both begin with
    goal, sol1, sol2, label           PIQA
    [prompt,] first, second, winner   two responses and which is better: named by --columns alone
    prompt, completion                for losses that need no rejected response, as all below
    messages (or conversations)       a conversation
    instruction, output[, input]      Alpaca
    text                              plain text, or a transcript

In every format `margin`, a number, and the chat template's `tools` and `chat_template_kwargs` are
optional; `system` is read where --columns names it. What else a row has: `data/unread.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from data import options as names
from data.errors import InputError
from data.options import ReadOptions
from data.readers import short


class RowFormat(NamedTuple):
    columns: tuple[str, ...]  # must be there
    responses: int
    optional: tuple[str, ...] = ()


PREFERENCE = RowFormat(names.PREFERENCE, 2)
IMPLICIT = RowFormat(("chosen", "rejected"), 2)
PIQA = RowFormat(names.PIQA, 2)
NUMBERED = RowFormat(names.NUMBERED, 2, ("prompt",))
COMPLETION = RowFormat(("prompt", "completion"), 1)
CONVERSATIONS = tuple(RowFormat((column,), 1) for column in names.CONVERSATION)
ALPACA = RowFormat(names.ALPACA, 1, ("input",))
TEXT = RowFormat(("text",), 1)
ROW_FORMATS = (PREFERENCE, IMPLICIT, PIQA, NUMBERED, COMPLETION, *CONVERSATIONS, ALPACA, TEXT)
ALWAYS = ("margin", "tools", "chat_template_kwargs")

RESPONSE_NAMES = ("response", "responses", "output", "answer", "answers", "target", "reply")


def row_format_of(row: Collection[str], where: str, pairs: bool, options: ReadOptions) -> RowFormat:
    """The format that a row's columns make it.

    Raises:
        InputError: none; what is missing for the nearest, or which there are.
    """
    found = [f for f in ROW_FORMATS if set(f.columns) <= set(row)]
    if "winner" not in options.columns:
        found = [f for f in found if f is not NUMBERED]
    if pairs and found and not any(f.responses == 2 for f in found):
        column = found[0].columns[0] if found[0] in CONVERSATIONS else "rejected"
        raise InputError(
            f"{where}:rejected: the column is missing, and this loss compares two responses"
            f"{f' ({column} has one)' if column != 'rejected' else ''};"
            " give chosen and rejected, or take a loss without pairs (sft)"
        )
    if found:
        return found[0]
    nearest = max(ROW_FORMATS, key=lambda f: len(set(f.columns) & set(row)) / len(f.columns))
    if set(nearest.columns) & set(row):
        missing = next(column for column in nearest.columns if column not in row)
        raise missing_column(missing, where, options.columns, row)
    needed = "prompt, chosen, rejected" if pairs else "messages or prompt, completion or text"
    raise InputError(
        f"{where}: of the columns {', '.join(list(row)[:12])} none is known; give"
        f" {needed}, or name yours: --columns ours=theirs,ours=theirs"
    )


def missing_column(
    column: str,
    where: str,
    columns: Mapping[str, tuple[str, ...]],
    row: Collection[str] = (),
) -> InputError:
    theirs = " + ".join(columns.get(column, ()))
    renamed = f" (and so is {theirs}, which was to be it)" if theirs else ""
    hint = ", or put PIQA's train-labels.lst beside train.jsonl" if column == "label" else ""
    like = [name for name in row if name.lower() in RESPONSE_NAMES]
    if column == "completion" and like:
        hint = f", or read another: --columns completion={like[0]}"
    return InputError(f"{where}:{column}: the column is missing{renamed}; add it{hint}")


def mapped(row: Mapping[str, object], options: ReadOptions, where: str) -> dict[str, object]:
    """The row with the columns that --columns names under our names."""
    found = dict(row)
    for ours, theirs in options.columns.items():
        if len(theirs) == 1 and theirs[0] in row:
            found[ours] = row[theirs[0]]
        elif len(theirs) > 1 and all(name in row for name in theirs):
            parts = [row[name] for name in theirs if row[name] not in (None, "", [])]
            for name, part in zip(theirs, parts, strict=False):
                if not isinstance(part, str):
                    raise InputError(
                        f"{where}:{name}: {short(part)} is not a string, and is to be joined with"
                        " others; join strings"
                    )
            found[ours] = "\n\n".join(map(str, parts))
    return found
