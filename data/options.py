"""How a user's rows are to be read: the flags about columns, splits and bad rows.

Standard library only: the command line checks them before anything heavy is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from data.errors import USAGE, InputError

PREFERENCE = ("prompt", "chosen", "rejected")
NUMBERED = ("first", "second", "winner")  # with a prompt, or without
PIQA = ("goal", "sol1", "sol2", "label")
CONVERSATION = ("messages", "conversations", "conversation")
ALPACA = ("instruction", "output")
MORE = ("completion", "text", "margin", "system", "input", "tools", "chat_template_kwargs")
OURS = (*PREFERENCE, *NUMBERED, *PIQA, *CONVERSATION, *ALPACA, *MORE)
JOINED = ("prompt", "chosen", "rejected", "completion", "text", "system", "instruction", "goal")


class Winner(NamedTuple):
    """What the winner column says: the value where the first wins, and where the second does."""

    first: str
    second: str

    def wins(self, value: object) -> bool | None:
        """Whether the first response wins; None where the value says neither."""
        if (self.first, self.second) in (("-", "+"), ("+", "-")):
            try:
                number = float(str(value))
            except ValueError:
                return None
            return None if not abs(number) > 0 else (number > 0) == (self.first == "+")
        known = {self.first.lower(): True, self.second.lower(): False}
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return known.get(str(value).strip().lower())


@dataclass(frozen=True)
class ReadOptions:
    """See the flags of the same names in runtime/config.py."""

    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # ours -> theirs, joined
    winner: Winner | None = None  # of the column that `winner` names
    ignore: frozenset[str] = frozenset()
    split: str | None = None
    bad_rows: Literal["stop", "skip"] = "stop"
    chat: bool = False
    train_on: Literal["all", "last"] = "all"


def read_options(
    columns: str | None = None,
    ignore: str | None = None,
    split: str | None = None,
    bad_rows: Literal["stop", "skip"] = "stop",
    chat: bool = False,
    train_on: Literal["all", "last"] = "all",
) -> ReadOptions:
    """The options from the flags' texts.

    Raises:
        InputError: a text that cannot be read, with the form that can.
    """
    found, winner = parse_columns(columns)
    names = [name.strip() for name in ignore.split(",")] if ignore else []
    if not all(names):
        raise InputError(f"--ignore {ignore}: write the names of columns, name,name", USAGE)
    return ReadOptions(found, winner, frozenset(names), split, bad_rows, chat, train_on)


def parse_columns(text: str | None) -> tuple[dict[str, tuple[str, ...]], Winner | None]:
    """`prompt=instruction+input,winner=labels:1/0` as ({ours: theirs}, what the winner says)."""
    columns: dict[str, tuple[str, ...]] = {}
    winner = None
    for pair in text.split(",") if text else []:
        ours, _, theirs = (part.strip() for part in pair.partition("="))
        if ours == "winner":
            theirs, _, values = theirs.rpartition(":")
            first, _, second = (value.strip() for value in values.partition("/"))
            if not (first and second and first.lower() != second.lower()):
                raise InputError(
                    f"--columns {text}: say what the column holds where the first response wins,"
                    " and where the second does: winner=labels:1/0, or by sign winner=strength:-/+",
                    USAGE,
                )
            winner = Winner(first, second)
        names = tuple(name.strip() for name in theirs.split("+"))
        if not (ours and all(names)):
            raise InputError(f"--columns {text}: write ours=theirs,ours=theirs", USAGE)
        if ours not in OURS:
            raise InputError(
                f"--columns {text}: no column of ours is called {ours};"
                f" ours are {', '.join(sorted(OURS))}",
                USAGE,
            )
        if ours in ("sol1", "sol2"):
            raise InputError(
                f"--columns {text}: the label of {ours} says 0 for the first, which yours may not;"
                " write first=, second= and winner=COLUMN:A/B",
                USAGE,
            )
        if ours in columns:
            raise InputError(f"--columns {text}: {ours} is there twice; join with +", USAGE)
        if len(names) > 1 and ours not in JOINED:
            raise InputError(
                f"--columns {text}: {ours} is one column; only texts can be joined with +", USAGE
            )
        columns[ours] = names
    numbered = set(NUMBERED) & set(columns)
    if numbered and len(numbered) < len(NUMBERED):
        raise InputError(
            f"--columns {text}: give all of first=, second= and winner=COLUMN:A/B", USAGE
        )
    return columns, winner
