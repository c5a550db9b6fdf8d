"""Records as rows of PIQA, for lm-eval's task: the way of `data/rows.py` back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from data.errors import InputError
from data.rows import AFTER_GOAL, BEFORE_GOAL, Record


def piqa_rows(records: Sequence[Record]) -> list[dict[str, object]]:
    """goal, sol1, sol2 and label of each record, so that lm-eval's prompt words it as it is.

    Rows of PIQA come back as they were. Pairs that are worded like PIQA (pocket's are) have no
    label of their own: in every other one the chosen response is sol2.

    Raises:
        InputError: naming the first record whose prompt or responses are worded otherwise.
    """
    return [_piqa_row(record, number % 2) for number, record in enumerate(records)]


def _piqa_row(record: Record, default_label: int) -> dict[str, object]:
    prompt, texts = record.prompt, [record.chosen, record.rejected]
    if not isinstance(prompt, str) or not (
        prompt.startswith(BEFORE_GOAL) and prompt.endswith(AFTER_GOAL)
    ):
        _refuse(record, "prompt", f"not worded {BEFORE_GOAL + '...' + AFTER_GOAL!r}")
    solutions = []
    for column, text in zip(("chosen", "rejected"), texts, strict=True):
        if not isinstance(text, str) or not text.startswith(" "):
            _refuse(record, column, "not a string that begins with a space")
        solutions.append(text[1:])
    label = default_label if record.label is None else record.label
    first, second = solutions[label], solutions[1 - label]
    goal = prompt[len(BEFORE_GOAL) : -len(AFTER_GOAL)]
    return {"goal": goal, "sol1": first, "sol2": second, "label": label}


def _refuse(record: Record, column: str, reason: str) -> NoReturn:
    raise InputError(
        f"{record.where}:{column}: {reason}, so this is no row of PIQA;"
        " lm-eval's piqa task needs goal, sol1, sol2 and label"
    )
