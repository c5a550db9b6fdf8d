"""The catalogue in print: one bug to study, a list of all, a table, a page."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from benchmarks.conformance.catalogue import functions, loop  # noqa: F401  (fill the lists)
from benchmarks.conformance.catalogue.bugs import BUGS, Bug
from benchmarks.conformance.catalogue.kill import Kill, kill
from benchmarks.conformance.catalogue.loop.base import LOOP_MUTANTS, LoopMutant, Seen
from benchmarks.conformance.catalogue.mutant import MUTANTS, Mutant

WIDTH = 96
INDENT = " " * 10
HANGING: Any = dict(initial_indent=" " * 12, subsequent_indent=" " * 18)
MOST = 4  # numbers shown of a case

PAGE = """# Bug catalogue

{bugs} bugs that shipped, as {mutants} wrong variants of this project's own code. Every one of them
must be rejected by a case: a vector of [vectors/](vectors) or a check that looks at our loop.

    python -m benchmarks.conformance --story D2     # what was wrong, the numbers, the fix
    python -m benchmarks.conformance --stories      # all of them, a line each
    python -m benchmarks.conformance --catalogue    # run them; exit status 1 if one survives

Sources are named as in [catalogue/bugs.py](catalogue/bugs.py). This page is what
`--stories --markdown` prints.

| bug | source | what was wrong | rejected by |
|---|---|---|---|
"""


@cache
def entries() -> dict[str, list[Mutant | LoopMutant]]:
    """Bugs with their wrong variants, in order."""
    of: dict[str, list[Mutant | LoopMutant]] = {}
    every: list[Mutant | LoopMutant] = [*MUTANTS, *LOOP_MUTANTS]
    for mutant in every:
        if mutant.bug is not None:
            of.setdefault(mutant.bug, []).append(mutant)
    return {bug: of[bug] for bug in sorted(of, key=lambda bug: BUGS[bug].order)}


def place(mutant: Mutant | LoopMutant) -> str:
    """What it stands in for, as one imports it."""
    return f"losses.{mutant.of}" if isinstance(mutant, Mutant) else mutant.at.replace(":", ".")


def story(bug: Bug) -> str:
    """One bug to study: its source, the fix, and each wrong variant with the numbers against it."""
    lines = [f"{bug.id}  {bug.wrong}", *_field("source", bug.source), *_field("right", bug.right)]
    for mutant in entries()[bug.id]:
        lines += ["", f"{mutant.fn.__name__} for {place(mutant)}"]
        lines += _field("wrong", mutant.story)
        lines += _field("file", mutant.fn.__module__.replace(".", "/") + ".py")
        found = kill(mutant)
        lines += _field("case", "none rejects it") if found is None else list(_case(found))
    return "\n".join(lines)


def _case(found: Kill) -> Iterator[str]:
    yield from _field("case", f"{found.by}: {found.about}")
    line = ""
    for part in found.given:  # as many on a line as fit
        if line and len(line) + len(part) > WIDTH - 12:
            yield from _given(line)
            line = ""
        line += ("  " if line else "") + part
    if line:
        yield from _given(line)
    shown = [(seen.what, number(seen.right), number(seen.got)) for seen in found.seen[:MOST]]
    first, second = (max(len(row[i]) for row in shown) for i in (0, 1))
    for what, right, got in shown:
        line = f"{INDENT}{what:<{first}}  right {right:<{second}}  wrong {got}"
        if right == got == "''":  # an exception, or a changed argument
            yield INDENT + what
        elif len(line) <= WIDTH:
            yield line
        else:
            yield INDENT + what
            yield from textwrap.wrap(f"right {right}", WIDTH, **HANGING)
            yield from textwrap.wrap(f"wrong {got}", WIDTH, **HANGING)


def _given(line: str) -> list[str]:
    return textwrap.wrap(line, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT + "  ")


def _field(name: str, text: str) -> list[str]:
    wrapped = textwrap.wrap(text, WIDTH - 10) or [""]
    return [f"  {name if i == 0 else '':<8}{line}" for i, line in enumerate(wrapped)]


def number(x: Any) -> str:
    """Nine digits, in lists too."""
    if isinstance(x, float):
        return f"{x:.9g}"
    if isinstance(x, (list, tuple)):
        return f"[{', '.join(map(number, x))}]"
    return repr(x)


def stories() -> str:
    """A line for each bug."""
    return "\n".join(f"{bug:<4} {BUGS[bug].wrong}" for bug in entries())


def markdown() -> str:
    """The page CATALOGUE.md."""
    found = entries()
    rows = [
        f"| {bug} | {BUGS[bug].source} | {BUGS[bug].wrong} | {_cell(mutants)} |"
        for bug, mutants in found.items()
    ]
    head = PAGE.format(bugs=len(found), mutants=sum(map(len, found.values())))
    return head + "\n".join(rows) + "\n"


def _cell(mutants: Iterable[Mutant | LoopMutant]) -> str:
    """`orpo/near-one` for vectors; for a check, its name and what it looks at."""
    cells = []
    for mutant in mutants:
        seen = kill(mutant)
        by = "nothing" if seen is None else seen.by
        cells.append(f"`{by}` ({mutant.fn.__name__})")
    return "<br>".join(cells)


def table() -> tuple[str, int]:
    """Every mutant and what rejects it; and how many nothing rejects."""
    lines, survivors = [], 0
    for bug, mutants in entries().items():
        for mutant in mutants:
            found = kill(mutant)
            survivors += found is None
            by = "SURVIVES" if found is None else f"{found.by}: {_first(found.seen[0])}"
            lines.append(f"{bug:<4} {mutant.fn.__name__:<34} {by}")
    count = len(lines)
    lines.append(f"{len(entries())} bugs, {count} mutants, {survivors} survive")
    return "\n".join(lines), survivors


def _first(seen: Seen) -> str:
    if seen.right == seen.got == "":
        return seen.what
    return f"{seen.what} is {number(seen.got)}, not {number(seen.right)}"[:110]
