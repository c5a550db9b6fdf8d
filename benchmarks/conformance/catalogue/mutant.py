"""A wrong variant of one of our functions: a few lines around the right one, with one thing broken.

The docstring is the story; `bug` is the number in bugs.txt where somebody shipped it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

import losses

Right = Callable[..., Tensor]
Pair = Callable[..., tuple[Tensor, Tensor]]  # gae


@dataclass(frozen=True)
class Mutant:
    of: str  # the function it stands in for
    fn: Callable[..., Any]
    bug: str | None

    def __call__(self, **inputs: Any) -> Any:
        return self.fn(getattr(losses, self.of), **inputs)

    def __str__(self) -> str:
        return f"{self.of}-{self.fn.__name__}"

    @property
    def story(self) -> str:
        """What is wrong with it, in one line."""
        return " ".join((self.fn.__doc__ or "").split())


MUTANTS: list[Mutant] = []  # filled by functions/*.py


def mutant(of: str, bug: str | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter the decorated function, which gets the right one first, as a wrong variant of `of`."""

    def enter(fn: Callable[..., Any]) -> Callable[..., Any]:
        MUTANTS.append(Mutant(of, fn, bug))
        return fn

    return enter
