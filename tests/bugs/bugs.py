"""bugs.txt, read: bugs that shipped, and each of them as patches of this project's own source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .patch import Edit

FILE = Path(__file__).with_name("bugs.txt")


@dataclass(frozen=True)
class Patch:
    """What a bug would be here, and what rejects it: a test, or `vector <case>`."""

    name: str  # D2, or G8.2 for the second patch of a bug
    edits: tuple[Edit, ...]
    by: str


@dataclass(frozen=True)
class Bug:
    id: str
    source: str
    wrong: str
    right: str
    patches: tuple[Patch, ...]


def read(path: Path = FILE) -> dict[str, Bug]:
    """Bugs by id; ValueError naming the line that is not as the head of the file says."""
    lines = [
        (number, line)
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if line.strip() and not line.startswith("#")
    ]
    bugs: dict[str, Bug] = {}
    while lines:
        number, line = lines.pop(0)
        name, _, source = line.partition("  ")
        if line.startswith(" ") or not source or name in bugs:
            raise ValueError(f"{path.name}:{number}: not `ID  source`, or an id twice: {line}")
        wrong, right = (_field(path, lines, name) for name in ("wrong:", "right:"))
        patches: list[Patch] = []
        while lines and lines[0][1].startswith(" "):
            edits: list[Edit] = []
            while lines and lines[0][1].startswith("    in "):
                at = lines.pop(0)[1][7:]
                while lines and lines[0][1].startswith("    -"):
                    edits.append(Edit(at, _marked(lines, "-"), _marked(lines, "+")))
            by = _field(path, lines, "by")
            if not edits:
                raise ValueError(f"{path.name}:{number}: {name}: `by` without an edit before it")
            label = f"{name}.{len(patches) + 1}" if patches else name
            patches.append(Patch(label, tuple(edits), by))
        bugs[name] = Bug(name, source, wrong, right, tuple(patches))
    return bugs


def _field(path: Path, lines: list[tuple[int, str]], name: str) -> str:
    number, line = lines.pop(0) if lines else (0, "")
    if not line.startswith(f"    {name} "):
        raise ValueError(f"{path.name}:{number}: expected `{name} ...`, found {line.strip()!r}")
    return line[len(name) + 5 :]


def _marked(lines: list[tuple[int, str]], mark: str) -> tuple[str, ...]:
    """The lines that begin with `- ` or `+ `, without that."""
    found: list[str] = []
    while lines and lines[0][1].startswith(f"    {mark}"):
        found.append(lines.pop(0)[1][6:])
    return tuple(found)


BUGS = read()
