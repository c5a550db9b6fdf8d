"""One bug in print: where it was, what is right, the patch as a diff, and the numbers that fail."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterator
from pathlib import Path

from .bugs import Bug, Patch
from .patch import edited
from .rejection import ROOT, rejections

WIDTH = 100


def story(bug: Bug) -> str:
    lines = [f"{bug.id}  {bug.wrong}", f"  source  {bug.source}", f"  right   {bug.right}"]
    found = rejections(bug.patches)
    for patch in bug.patches:
        rejected = found[patch.name]
        lines += ["", *diff(patch), "", f"  rejected by {patch.by}"]
        for text in (rejected.about, rejected.after or "IT PASSES: nothing sees this bug"):
            for line in text.splitlines():
                lines += textwrap.wrap(
                    line, WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 6
                )
    return "\n".join(lines)


def diff(patch: Patch) -> Iterator[str]:
    """The patch as a unified diff of the files it is in."""
    for at in dict.fromkeys(edit.at for edit in patch.edits):
        path, before, after = edited(at, [edit for edit in patch.edits if edit.at == at])
        name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else Path(path.name)
        hunks = difflib.unified_diff(before, after, f"a/{name}", f"b/{name}", lineterm="")
        yield from hunks
