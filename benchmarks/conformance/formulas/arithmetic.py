"""Numbers that know how far floating point may be off: 80 digits, and what rounding they cost.

`Rounded(v, s)` is a value and its *scale*: to first order, a program that evaluates the same
formula in a dtype with machine epsilon u is off by at most u s, when every operation is off by at
most u of its own result. (Running error analysis: Higham, "Accuracy and Stability of Numerical
Algorithms", section 3.3.) `Dual` adds derivatives by the inputs, with scales of their own: + and *
and the chain rule are all there is to it.

Nothing here is an approximation of the answer: 80 digits leave more than 30 after every
cancellation that the vectors hold, and the dtypes never appear.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from mpmath import mp, mpf  # type: ignore[import-untyped]

PRECISION = 80  # decimal digits: `with mp.workdps(PRECISION)` around whatever uses these numbers
ZERO, ONE = mpf(0), mpf(1)


@dataclass(frozen=True)
class Rounded:
    v: mpf
    s: mpf = ZERO

    def __mul__(self, other: Rounded) -> Rounded:
        v, s = self.v * other.v, abs(self.v) * other.s + abs(other.v) * self.s
        exact = any(abs(x.v) in (0, 1) and not x.s for x in (self, other))
        return Rounded(v, s if exact else s + abs(v))


def total(terms: Iterable[Rounded]) -> Rounded:
    """Their sum, in whatever order it is taken: each term is rounded once (two: only the sum)."""
    kept = [t for t in terms if t.v or t.s]
    v = mp.fsum(t.v for t in kept)
    rounding = mp.fsum(abs(t.v) for t in kept) if len(kept) > 2 else abs(v)
    return Rounded(v, mp.fsum(t.s for t in kept) + (rounding if len(kept) > 1 else 0))


@dataclass(frozen=True)
class Dual:
    """A number and its derivatives by input 0, 1, ..."""

    x: Rounded
    d: dict[int, Rounded] = field(default_factory=dict)

    def __mul__(self, other: Dual) -> Dual:
        keys = self.d.keys() | other.d.keys()
        nothing = Rounded(ZERO)
        return Dual(
            self.x * other.x,
            {
                i: total([self.x * other.d.get(i, nothing), other.x * self.d.get(i, nothing)])
                for i in keys
            },
        )

    def __neg__(self) -> Dual:
        return Dual(
            Rounded(-self.x.v, self.x.s), {i: Rounded(-p.v, p.s) for i, p in self.d.items()}
        )

    def __add__(self, other: Dual) -> Dual:
        return plus(self, other)

    def __sub__(self, other: Dual) -> Dual:
        return plus(self, -other)

    def through(self, f: mpf, slope: mpf, bend: mpf) -> Dual:
        """f(self) from f, f' and f'' there: value and slope are rounded once each."""
        slope_ = Rounded(slope, abs(bend) * self.x.s + abs(slope))
        return Dual(
            Rounded(f, abs(slope) * self.x.s + abs(f)),
            {i: slope_ * p for i, p in self.d.items()},
        )


def plus(*terms: Dual) -> Dual:
    keys = {i for t in terms for i in t.d}
    return Dual(
        total(t.x for t in terms),
        {i: total(t.d[i] for t in terms if i in t.d) for i in keys},
    )


def given(x: float) -> Dual:
    """An option: a double, which a shorter dtype may have to round; small integers are exact."""
    exact = x == int(x)
    return Dual(Rounded(mpf(x), ZERO if exact else abs(mpf(x))))


def exactly(x: float) -> Dual:
    """A constant of the formula that every dtype holds."""
    return Dual(Rounded(mpf(x)))


def variable(x: float, index: int) -> Dual:
    """An input, exact in every dtype that its case names."""
    return Dual(Rounded(mpf(x)), {index: Rounded(ONE)})


# ------------------------------------------------------------- functions, with f' and f''


def exp(x: Dual) -> Dual:
    e = mp.exp(x.x.v)
    return x.through(e, e, e)


def expm1(x: Dual) -> Dual:
    e = mp.exp(x.x.v)
    return x.through(mp.expm1(x.x.v), e, e)


def reciprocal(x: Dual) -> Dual:
    v = x.x.v
    return x.through(1 / v, -1 / v**2, 2 / v**3)


def logsigmoid(x: Dual) -> Dual:
    v = x.x.v
    wrong, right = 1 / (1 + mp.exp(v)), 1 / (1 + mp.exp(-v))  # σ(-x), σ(x)
    f = -mp.log1p(mp.exp(-v)) if v > 0 else v - mp.log1p(mp.exp(v))
    return x.through(f, wrong, -wrong * right)


def log1mexp(a: Dual) -> Dual:
    """log(1 - e^a) for a < 0; at 0, where it is -inf, from so near that no dtype can tell."""
    v = a.x.v or -(mpf(2) ** -20000)
    back = mp.expm1(-v)  # e^-a - 1
    f = mp.log(-mp.expm1(v)) if v > -ONE else mp.log1p(-mp.exp(v))
    return a.through(f, -1 / back, -mp.exp(-v) / back**2)


# ------------------------------------------------------------------------------ kinks


class Kinks:
    """How near the formulas came to a place where two branches meet, in parts of the scale.

    There the derivative jumps, so a dtype that could round to the other side is not asked. The
    generator resets `nearest` before a case and reads it after.
    """

    nearest = mpf("inf")

    @classmethod
    def meet(cls, a: Dual, b: Dual) -> None:
        room = a.x.s + b.x.s + abs(a.x.v - b.x.v) + mpf(2) ** -60
        cls.nearest = min(cls.nearest, abs(a.x.v - b.x.v) / room)


def smaller(a: Dual, b: Dual) -> Dual:
    if a is not b:
        Kinks.meet(a, b)
    return a if a.x.v <= b.x.v else b


def larger(a: Dual, b: Dual) -> Dual:
    if a is not b:
        Kinks.meet(a, b)
    return a if a.x.v >= b.x.v else b


def clamp(x: Dual, low: Dual, high: Dual) -> Dual:
    """x itself (the same object) where nothing is clamped."""
    return smaller(larger(x, low), high)
