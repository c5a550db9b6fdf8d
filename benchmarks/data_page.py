"""docs/data.md: what is trained of data sets that people know, by the code itself.

    python -m benchmarks.data_page           # compares the page with what the code shows
    python -m benchmarks.data_page --fix     # writes it anew

The page has, for each data set, rows of its layout and the flags that read them; what is below them
is what `--dry_run` shows, with pocket's tokenizer and ChatML as the chat template.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.encode import encode_records
from data.records import load_data
from losses import LOSSES
from models.load import load_tokenizer
from runtime.cli import parse_args
from runtime.sources.rows import show_examples

PAGE = Path(__file__).resolve().parent.parent / "docs" / "data.md"
SECTION = re.compile(r"(```json\n(.*?)```\n\n`(--loss .*?)`\n\n```\n)(.*?)(```\n)", re.S)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def shown(rows: str, flags: str) -> str:
    """What a dry run shows of the first of the rows, which are lines of JSON."""
    tokenizer: Any = load_tokenizer("pocket")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    config = parse_args(flags.split()).train
    loss = LOSSES[config.loss]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.jsonl"
        file.write_text(rows, "utf-8")
        pairs = loss.responses_per_row == 2
        records, _, told = load_data(str(file), str(file), pairs=pairs, options=config.reading)
    if not pairs:
        records = [replace(record, rejected=None) for record in records]
    encoded = encode_records(records, tokenizer, ignore=config.reading.ignore)
    unread = re.search(r"columns not read: [\w, -]+", told)
    text = show_examples(encoded.rows, tokenizer, count=1)
    return "".join(f"{line}\n" for line in [*([unread[0]] if unread else []), text])


def fixed(page: str) -> str:
    """The page with everything that the code shows made anew."""
    return SECTION.sub(lambda m: m[1] + shown(m[2], m[3]) + m[5], page)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--fix", action="store_true", help="write the page anew")
    page = PAGE.read_text("utf-8")
    anew = fixed(page)
    if parser.parse_args().fix:
        PAGE.write_text(anew, "utf-8")
    elif anew != page:
        print(f"{PAGE}: not what the code shows; run it with --fix", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
