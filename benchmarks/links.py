"""Do the links of the Markdown pages at the top and in docs/ lead where they say?

python -m benchmarks.links           # lists those that do not
python -m benchmarks.links --fix     # moves #L numbers to where the linked text stands now

A link to a line names what stands there: [`h = policy_logratio - ref_logratio`](...dpo.py#L111).
A link to a test file names a function in it, and so does not need a number.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.record import ROOT

LINK = re.compile(r"\[(?P<text>`[^`\n]+`|[^\]\n]*)\]\((?P<path>[^)\s#]*)(?:#(?P<part>[^)\s]*))?\)")


class Link(NamedTuple):
    page: Path
    text: str  # without its backquotes
    target: Path
    part: str  # what follows the #
    span: tuple[int, int]  # of that part, in the page

    def __str__(self) -> str:
        where = f"{self.target.relative_to(ROOT)}#{self.part}".rstrip("#")
        return f"{self.page.relative_to(ROOT)}: `{self.text}` -> {where}"


def pages() -> list[Path]:
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def links(page: Path) -> Iterator[Link]:
    """Every link of a page to something in the checkout."""
    for match in LINK.finditer(page.read_text("utf-8")):
        if ":" not in match["path"]:
            target = (page.parent / match["path"]).resolve() if match["path"] else page
            part = match["part"] or ""
            yield Link(page, match["text"].strip("`"), target, part, match.span("part"))


def line_of(link: Link) -> int | None:
    """The line that holds the linked text, the nearest if several do; None if none does."""
    lines = link.target.read_text("utf-8").splitlines()
    found = [n for n, line in enumerate(lines, 1) if link.text in line]
    said = int(link.part.removeprefix("L"))
    return min(found, key=lambda n: abs(n - said), default=None)


def anchors(page: Path) -> set[str]:
    """GitHub's names of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def wrong(link: Link) -> str | None:
    """What is wrong with a link, or None."""
    if not link.target.exists():
        return f"{link}: no such file"
    if re.fullmatch(r"L\d+", link.part):
        line = line_of(link)
        if line is None:
            return f"{link}: no line holds this text"
        return None if link.part == f"L{line}" else f"{link}: it is line {line} (--fix)"
    if link.part and link.part not in anchors(link.target):
        return f"{link}: no such heading"
    if link.target.parent == ROOT / "tests" and re.fullmatch(r"(test|check)_\w+", link.text):
        if f"def {link.text}(" not in link.target.read_text("utf-8"):
            return f"{link}: no such test"
    return None


def fix(page: Path) -> None:
    """Move the #L numbers of a page to where the linked texts stand."""
    text = page.read_text("utf-8")
    for link in reversed(list(links(page))):
        if re.fullmatch(r"L\d+", link.part) and link.target.exists():
            start, end = link.span
            text = text[:start] + f"L{line_of(link) or link.part[1:]}" + text[end:]
    page.write_text(text, "utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--fix", action="store_true", help="rewrite the line numbers")
    if parser.parse_args().fix:
        for page in pages():
            fix(page)
    problems = [problem for page in pages() for link in links(page) if (problem := wrong(link))]
    print(*problems, sep="\n", end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
