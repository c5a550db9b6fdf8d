"""The model card: what the hub reads, no folder of this machine, and text that stays text."""

import html
import re
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from runs import BASE, QUICK, pocket_rows, run, write_rows
from test_report import SUMMARY, TABLE

from losses.dpo import DPOConfig
from runtime.card import _code, model_card, without_folders
from runtime.config import Run, TrainConfig

RUN = Run(
    TrainConfig(loss="dpo", model="some/model", learning_rate=1e-6),
    DPOConfig(beta=0.5),
    {"beta": "command line"},
)
CARD = """\
---
base_model: some/model
library_name: transformers
tags:
- alignment-losses
- dpo
---

# model, trained with dpo

Started from `some/model` and trained with the `dpo` loss of alignment-losses.

- Settings: `30 steps of 16, learning rate 1e-06 linear, beta 0.5, 2 processes`
- Data: `train: 48 rows of here`
- Versions: torch 2.0, transformers 5.0

On the held-out rows:

```
{table}
```
"""


def card(run=RUN, **about):
    return model_card(run, 2, SUMMARY | {"loss": "dpo"} | about)


def with_flags(**flags):
    return replace(RUN, train=replace(RUN.train, **flags))


def test_the_model_card():
    assert card() == CARD.format(table=TABLE)


@pytest.mark.parametrize("base", ["pocket", "~/my model"])
def test_the_card_links_no_model_that_is_not_on_the_hub(tmp_path, monkeypatch, base):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my model").mkdir()
    text, name = card(with_flags(model=base)), Path(base).name
    assert "base_model" not in text
    assert f"\n# {name}, trained with dpo\n\nStarted from `{name}` and" in text


@pytest.mark.parametrize("name", ["x.jsonl", "a b.jsonl", "é$x.jsonl"])
def test_no_folder_of_this_machine_is_named(tmp_path, name):
    folder = tmp_path / "the user's own place"
    folder.mkdir()
    (folder / name).touch()
    run = with_flags(data=f"{folder / name},/data/other.jsonl=2")
    text = without_folders(f"48 rows of {folder / name}, 3 of /data/other.jsonl and org/name", run)
    assert text == f"48 rows of {name}, 3 of other.jsonl and org/name"


EVIL = "a`b\n# Title\n<script>alert(1)</script>\n---\nbase_model: evil/model\n[x](javascript:y)```"


def test_what_a_user_named_is_text_and_no_markup(tmp_path):
    text = card(with_flags(model=EVIL), data=f"48 rows of {EVIL}")
    read = ModelCard(text)
    assert read.data.to_dict() == {
        "library_name": "transformers", "tags": ["alignment-losses", "dpo"]
    }  # fmt: skip
    page = MarkdownIt().render(read.text)
    assert "<script" not in page and "<a " not in page and page.count("<h1>") == 1


@given(st.text(alphabet="`ab<* \n", min_size=1))
def test_a_code_span_holds_any_text(text):
    shown = MarkdownIt().renderInline(_code(text))
    (inner,) = re.findall("^<code>(.*)</code>$", shown) or [_code(text)]
    assert html.unescape(inner).strip() == text.replace("\n", " ").strip() or not text.strip()


def test_the_card_of_a_run_names_no_folder(tmp_path):
    data, out = (
        write_rows(tmp_path / "secret place" / "rows", *pocket_rows(24, 8)),
        tmp_path / "out",
    )
    flags = ("--loss", "dpo", "--model", BASE, "--data", data, "--output_dir", out, *QUICK)
    assert run(*flags, cwd=tmp_path).code == 0
    text = (out / "final" / "README.md").read_text("utf-8")
    for path in (tmp_path, data.parent, BASE.parent, Path.cwd()):
        assert str(path) not in text
    assert "secret place" not in text and "Started from `base`" in text
    assert "`train: 24 rows of rows/train.jsonl; held out: 8 rows of rows/valid.jsonl`" in text
