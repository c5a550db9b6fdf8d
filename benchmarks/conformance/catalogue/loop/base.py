"""A wrong loop: ours, with one thing in it exchanged while a check looks on."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

TOLERANCE = 1e-9  # of float64 through a tiny model, relative to the number or to 1


@dataclass(frozen=True)
class Seen:
    """One thing that a check looked at: what it must be, worked out by hand, and what it was."""

    what: str
    right: Any
    got: Any
    within: float = TOLERANCE

    @property
    def off(self) -> bool:
        return not same(self.right, self.got, self.within)


def same(right: Any, got: Any, within: float = TOLERANCE) -> bool:
    """Equal, floating-point numbers up to a tolerance; a NaN is equal to nothing."""
    if isinstance(right, (list, tuple)):
        alike = isinstance(got, (list, tuple)) and len(right) == len(got)
        return alike and all(same(a, b, within) for a, b in zip(right, got, strict=True))
    if isinstance(right, float) and isinstance(got, (int, float)):
        return right == got or abs(right - got) <= within * max(1.0, abs(right))
    return bool(right == got)


Check = Callable[..., list[Seen]]


@dataclass(frozen=True, eq=False)  # its options may be lists
class LoopMutant:
    bug: str
    at: str  # what it stands in for: "module:name" or "module:Class.name"
    fn: Callable[..., Any]
    check: Check  # sees it
    options: tuple[tuple[str, Any], ...]  # of the check

    def __str__(self) -> str:
        return f"{self.at}-{self.fn.__name__}"

    @property
    def story(self) -> str:
        """What is wrong with it, in one line."""
        return " ".join((self.fn.__doc__ or "").split())

    def right(self) -> list[Seen]:
        """What the check sees of our loop."""
        return self.check(**dict(self.options))

    def wrong(self) -> list[Seen]:
        """And with the one thing exchanged."""
        with exchanged(self.at, self.fn):
            return self.check(**dict(self.options))


LOOP_MUTANTS: list[LoopMutant] = []  # filled by the files beside this one


def in_the_loop(
    bug: str, at: str, check: Check, **options: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter the decorated function as a wrong variant of what stands at `at`.

    It gets the right one first, and then what that would get.
    """

    def enter(fn: Callable[..., Any]) -> Callable[..., Any]:
        LOOP_MUTANTS.append(LoopMutant(bug, at, fn, check, tuple(options.items())))
        return fn

    return enter


@contextmanager
def exchanged(at: str, fn: Callable[..., Any]) -> Iterator[None]:
    """`fn` in the place of what stands at `at`."""
    module, _, path = at.partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    right = getattr(owner, name)

    @wraps(right)
    def wrong(*args: Any, **kwargs: Any) -> Any:
        return fn(right, *args, **kwargs)

    # the losses' records are frozen, for all but this
    put = object.__setattr__ if hasattr(owner, "__dataclass_fields__") else setattr
    if isinstance(owner, type):
        put = setattr
    put(owner, name, wrong)
    try:
        yield
    finally:
        put(owner, name, right)
