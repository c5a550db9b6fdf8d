"""A report as a list of blocks, and the two pages made of it: Markdown and one HTML file.

Texts know one mark-up, `code`. Everything else in them is shown as it stands: sampled answers may
hold any character.
"""

from __future__ import annotations

import base64
import html
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Bullets:
    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str
    numbers: bool = True  # all columns but the first are right-aligned


@dataclass(frozen=True)
class Picture:
    path: Path
    caption: str
    alt: str


@dataclass(frozen=True)
class Code:
    text: str


Block = Heading | Text | Bullets | Table | Picture | Code

STYLE = """
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222;
       font: 16px/1.5 system-ui, sans-serif; }
h1, h2, h3 { line-height: 1.2; margin-top: 2.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.88rem; margin-top: 1rem; }
th, td { padding: 0.3rem 0.6rem; border-bottom: 1px solid #ddd; text-align: left;
         vertical-align: top; }
th { border-bottom: 2px solid #888; vertical-align: bottom; }
.numbers td:not(:first-child), .numbers th:not(:first-child) {
  text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.numbers th:not(:first-child) { white-space: normal; }
img { max-width: 100%; height: auto; margin-top: 1rem; }
p.caption { color: #555; font-size: 0.88rem; margin-top: 0.4rem; }
pre, code { font-family: ui-monospace, monospace; font-size: 0.85em; }
pre { background: #f6f6f6; padding: 0.8rem; overflow-x: auto; }
"""


def to_markdown(blocks: Sequence[Block], folder: Path) -> str:
    """Figures as links relative to `folder`, where the page will lie."""
    return "\n\n".join(part for block in blocks for part in _markdown(block, folder)) + "\n"


def _markdown(block: Block, folder: Path) -> Iterator[str]:
    if isinstance(block, Heading):
        yield f"{'#' * block.level} {_escape_markdown(block.text)}"
    elif isinstance(block, Text):
        yield _inline(block.text, _escape_markdown, "`{}`")
    elif isinstance(block, Bullets):
        yield "\n".join(f"- {_inline(item, _escape_markdown, '`{}`')}" for item in block.items)
    elif isinstance(block, Table):
        side = "---:" if block.numbers else "---"
        lines = [block.header, ["---", *[side] * (len(block.header) - 1)]]
        cells = [[_inline(c, _escape_markdown, "`{}`") for c in row] for row in block.rows]
        head = [_escape_markdown(c) for c in lines[0]]
        yield "\n".join(f"| {' | '.join(row)} |" for row in [head, lines[1], *cells])
        yield f"*{_inline(block.caption, _escape_markdown, '`{}`')}*"
    elif isinstance(block, Picture):
        link = Path(os.path.relpath(block.path, folder)).as_posix()
        yield f"![{_escape_markdown(block.alt)}]({link})"
        yield f"*{_inline(block.caption, _escape_markdown, '`{}`')}*"
    else:
        # a fence longer than any in the text, which could end it
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", block.text)), default=0))
        yield f"{fence}\n{block.text}\n{fence}"


def to_html(blocks: Sequence[Block], title: str) -> str:
    """One file that needs no other: pictures are inside it, and there is no script."""
    body = "\n".join(_html(block) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
    if isinstance(block, Text):
        return f"<p>{_html_text(block.text)}</p>"
    if isinstance(block, Bullets):
        return "<ul>" + "".join(f"<li>{_html_text(item)}</li>" for item in block.items) + "</ul>"
    if isinstance(block, Code):
        return f"<pre>{html.escape(block.text)}</pre>"
    caption = f'<p class="caption">{_html_text(block.caption)}</p>'
    if isinstance(block, Picture):
        data = base64.b64encode(block.path.read_bytes()).decode()
        image = f'<img alt="{html.escape(block.alt)}" src="data:image/png;base64,{data}">'
        return f"{image}\n{caption}"
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in block.header)
    rows = "\n".join(
        f"<tr>{''.join(f'<td>{_html_text(cell)}</td>' for cell in row)}</tr>" for row in block.rows
    )
    kind = ' class="numbers"' if block.numbers else ""
    table = f"<table{kind}>\n<tr>{head}</tr>\n{rows}\n</table>"
    return f'<div class="wide">{table}</div>\n{caption}'


def _html_text(text: str) -> str:
    return _inline(text, html.escape, "<code>{}</code>")


def _inline(text: str, escape: Callable[[str], str], code: str) -> str:
    """`code` between backquotes, the rest escaped."""
    parts = re.split(r"`([^`]+)`", text)
    inside = str if code.startswith("`") else html.escape
    return "".join(code.format(inside(p)) if i % 2 else escape(p) for i, p in enumerate(parts))


def _escape_markdown(text: str) -> str:
    text = re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", text)
    return html.escape(text, quote=False).replace("\n", " ")


def plain(text: str) -> str:
    """A sampled text as one line without mark-up of ours."""
    return " ".join(text.replace("`", "'").split())
