"""What a case is, and numbers that every dtype holds exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from random import Random
from typing import Any

NAN = math.nan
LONG = 4096  # tokens of a long row


@dataclass(frozen=True)
class Case:
    """One question: inputs by the argument's name, as (nested) lists of bfloat16 numbers."""

    family: str
    name: str
    story: str  # one sentence: what an implementation shows by passing
    inputs: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    cites: tuple[str, ...] = ()  # bugs of tests/bugs/bugs.txt that it would catch
    dtypes: tuple[str, ...] = ("float64", "float32", "bfloat16")
    values_only: bool = False  # at a kink, where a derivative is a matter of taste
    long: bool = False
    far: bool = False  # from every kink, though a ratio of e^60 has a scale as large as itself


def bf16(x: float) -> float:
    """The nearest number with eight significant bits."""
    mantissa, exponent = math.frexp(x)
    return math.ldexp(round(mantissa * 256) / 256, exponent)


def mask_of(*rows: str) -> list[list[bool]]:
    return [[c == "1" for c in row] for row in rows]


def under(mask: list[list[bool]], table: list[list[float]], hidden: float = NAN) -> Any:
    """The table with `hidden` wherever the mask is False."""
    return [
        [x if keep else hidden for x, keep in zip(xs, keeps, strict=True)]
        for xs, keeps in zip(table, mask, strict=True)
    ]


class Draw:
    """Random numbers, the same on every machine for one seed."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng

    def number(self, low: float = -3.0, high: float = -0.1) -> float:
        return bf16(low + (high - low) * self.rng.random())

    def row(self, n: int, low: float = -3.0, high: float = -0.1) -> list[float]:
        return [self.number(low, high) for _ in range(n)]

    def table(self, b: int, t: int, low: float = -3.0, high: float = -0.1) -> list[list[float]]:
        return [self.row(t, low, high) for _ in range(b)]

    def ids(self, n: int, below: int) -> list[int]:
        return [int(self.rng.random() * below) for _ in range(n)]

    def lengths(self, b: int, t: int) -> list[list[bool]]:
        """A mask of rows of random lengths, at least one of them full."""
        ends = [t, *(1 + n for n in self.ids(b - 1, t))]
        return [[i < end for i in range(t)] for end in ends]
