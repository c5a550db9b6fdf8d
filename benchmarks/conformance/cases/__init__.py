"""What the vectors ask: inputs, options and the story of every case. The answers are formulas/."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from . import head, pairs, ppo, rows, trajectories
from .base import Case, Draw


def all_cases(seed: int, long: bool = True) -> Iterator[Case]:
    """Every case of every family, family by family; `long` ones only where asked for."""
    for module in (rows, pairs, ppo, trajectories, head):
        for case in module.cases(Draw(Random(seed))):
            if long or not case.long:
                yield case
