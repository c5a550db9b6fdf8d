"""A wrong variant of this project's source: a few lines of a function replaced while one looks on.

Only the `__code__` of the function changes, so that whoever holds the function (`from x import f`,
a record such as `LOSS.step`, a bound method) runs the wrong lines too, with the line numbers that a
file edited by hand would have.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from types import CodeType, FunctionType
from typing import Any


class PatchError(Exception):
    """A patch that does not fit the source as it is."""


@dataclass(frozen=True)
class Edit:
    """Lines of one function, and what stands there instead. The indentation is relative."""

    at: str  # module:name or module:Class.name
    old: tuple[str, ...]
    new: tuple[str, ...]


def function_at(at: str) -> FunctionType:
    """The Python function itself, below any decorator, property or static method."""
    module, _, path = at.partition(":")
    found: Any = importlib.import_module(module)
    try:
        for name in path.split("."):
            found = getattr(found, name)
    except AttributeError as error:
        raise PatchError(f"{at}: {error}") from error
    found = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
    function = inspect.unwrap(found)
    if not isinstance(function, FunctionType):
        raise PatchError(f"{at}: is a {type(function).__name__}, not a function")
    return function


def edited(at: str, edits: Sequence[Edit]) -> tuple[Path, list[str], list[str]]:
    """(file, its lines, its lines after the edits, all of which are in the function `at`)."""
    function = function_at(at)
    path = Path(inspect.getsourcefile(function) or "")
    before = path.read_text("utf-8").splitlines()
    body, first = inspect.getsourcelines(function)
    after, end = list(before), first - 1 + len(body)
    for edit in edits:
        size = len(edit.old)
        starts = range(first - 1, end - size + 1)
        fits = [i for i in starts if tuple(_flush(after[i : i + size])) == edit.old]
        if len(fits) != 1:
            shown = "\n".join(f"    - {line}" for line in edit.old)
            raise PatchError(f"{at}: {len(fits)} places match, not 1:\n{shown}")
        margin = min(len(x) - len(x.lstrip()) for x in after[fits[0] : fits[0] + size] if x)
        after[fits[0] : fits[0] + size] = [(" " * margin + x).rstrip() for x in edit.new]
        end += len(edit.new) - size
    return path, before, after


def _flush(lines: Sequence[str]) -> list[str]:
    return dedent("\n".join(lines)).split("\n")


@contextmanager
def applied(edits: Sequence[Edit]) -> Iterator[None]:
    """The functions have other lines while this lasts, and their own again afterwards."""
    with ExitStack() as undo:
        for at in dict.fromkeys(edit.at for edit in edits):
            function = function_at(at)
            right = function.__code__
            path, _, after = edited(at, [edit for edit in edits if edit.at == at])
            module = compile("\n".join(after) + "\n", str(path), "exec", dont_inherit=True)
            undo.callback(setattr, function, "__code__", right)
            function.__code__ = _find(module, function.__qualname__.split("."), right)
        yield


def _find(code: CodeType, names: Sequence[str], like: CodeType) -> CodeType:
    """The code of `names` inside a module's or a class's; two of one name differ by their line."""
    inner = [x for x in code.co_consts if isinstance(x, CodeType) and x.co_name == names[0]]
    if len(names) > 1:
        return _find(inner[0], names[1:], like)
    return next(x for x in inner if x.co_firstlineno == like.co_firstlineno)
