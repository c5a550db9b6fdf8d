"""Which split is trained on and which is held out, by their names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from data.errors import NO_INPUT, USAGE, InputError

TRAIN_WORDS = ("train", "training")
HELDOUT_WORDS = (  # the words that `datasets` knows, and pocket's; the first that is there is taken
    *("validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation", "heldout"),
)
# Families as in UltraChat (train_sft) and UltraFeedback-binarized (train_prefs): what follows the
# word. A split is only held out for one of its own family.
PAIR_FAMILIES = ("", "prefs")
FAMILIES = ("", "sft", "prefs", "gen")

_WORDS = "|".join(sorted((*TRAIN_WORDS, *HELDOUT_WORDS), key=len, reverse=True))
_BOUNDED = re.compile(rf"(?:^|(?<=[-._ 0-9]))(?:{_WORDS})(?=[-._ 0-9]|$)", re.IGNORECASE)


class SplitName(NamedTuple):
    """`my-train_sft` in three: `my-`, `train`, `sft`."""

    before: str
    word: str
    family: str

    @property
    def trains(self) -> bool:
        return self.word in TRAIN_WORDS


def split_name(name: str) -> SplitName | None:
    """A name with one word for a split in it, bounded as `datasets` bounds it; else None."""
    found = list(_BOUNDED.finditer(name))
    if len(found) != 1:
        return None
    word = found[0]
    before, family = name[: word.start()], name[word.end() :].strip("-._ ")
    if not family and before.strip("-._ ") in FAMILIES:  # sft_train
        before, family = "", before.strip("-._ ")
    return SplitName(before, word[0].lower(), family)


def parse_split(asked: str, flag: str = "--split") -> tuple[str, str | None]:
    """`TRAIN` or `TRAIN,HELDOUT` as the names of two splits."""
    names = [name.strip() for name in asked.split(",")]
    if len(names) > 2 or not all(names):
        raise InputError(f"{flag} {asked}: not a split or two; give TRAIN or TRAIN,HELDOUT", USAGE)
    if len(names) == 2 and names[0] == names[1]:
        raise InputError(f"{flag} {asked}: trained on and held out as well; give two splits", USAGE)
    return names[0], names[1] if len(names) == 2 else None


def choose(
    source: str,
    names: Sequence[str],
    asked: tuple[str, str | None] | None,
    pairs: bool,
    *,
    loose: bool = False,
) -> tuple[str | None, str | None]:
    """(the split to train on, the split held out) of the splits called `names`.

    `loose`: the only training split is taken whatever follows the word (train_v2), unless that
    says that it is for another loss.
    """
    if asked is not None:
        train = _find(source, names, asked[0])
        if asked[1] is None:
            return train, counterpart(train, names)
        return train, _find(source, names, asked[1])
    known = {name: split_name(name) for name in names}
    if len(names) == 1:
        only = known[names[0]]
        return (None, names[0]) if only and not only.trains else (names[0], None)
    for family in PAIR_FAMILIES if pairs else FAMILIES:
        for word in TRAIN_WORDS:
            for name, parsed in known.items():
                if parsed == ("", word, family):
                    return name, counterpart(name, names)
    training = [name for name, parsed in known.items() if parsed and parsed.trains]
    if loose and len(training) == 1:
        parsed = known[training[0]]
        if parsed and parsed.family not in FAMILIES:
            return training[0], counterpart(training[0], names)
    if not any(parsed is None or parsed.trains for parsed in known.values()):
        return None, _first_held_out("", "", names)
    raise InputError(
        f"{source}: only the splits {_listed(names)}; say which to train on: --split NAME,"
        " or --split NAME,HELDOUT",
        NO_INPUT,
    )


def counterpart(train: str, names: Collection[str]) -> str | None:
    """The split to hold out for a training split: of the same family, or none."""
    parsed = split_name(train)
    if parsed is None or not parsed.trains:
        return None
    return _first_held_out(parsed.before, parsed.family, names)


def _first_held_out(before: str, family: str, names: Collection[str]) -> str | None:
    for word in HELDOUT_WORDS:
        for name in names:
            if split_name(name) == (before, word, family):
                return name
    return None


def _find(source: str, names: Sequence[str], asked: str) -> str:
    if asked in names:
        return asked
    same = [name for name in names if split_name(asked) == split_name(name) is not None]
    if len(same) == 1:  # in other letters: Train
        return same[0]
    close = difflib.get_close_matches(asked, names, n=1)
    guess = f"did you mean {close[0]}? " if close else ""
    raise InputError(
        f"{source}: no split {asked!r}; {guess}it has {_listed(names)}: give --split one of these",
        NO_INPUT,
    )


def _listed(names: Collection[str]) -> str:
    return ", ".join(names)
