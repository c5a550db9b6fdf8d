"""The data sets of docs/data.md, end to end: the flags of the page, three rows, a run on them."""

import json
import re

import pytest
from runs import BASE, run
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.data_page import PAGE, SECTION

NAMES = re.findall(r"^### (.*)$", PAGE.read_text("utf-8"), re.M)
SETS = [(rows, flags) for _, rows, flags, *_ in SECTION.findall(PAGE.read_text("utf-8"))]
THINGS = ("whale", "ship", "house")
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ 'Answer: ' + m.content + eos_token }}"
    "{% else %}{{ m.role + ': ' + m.content + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Answer: ' }}{% endif %}"
)


@pytest.mark.parametrize(("rows", "flags"), SETS, ids=NAMES)
def test_a_data_set_that_people_know_is_trained_by_the_pages_flags(rows, flags, tmp_path):
    data, template, out = (tmp_path / name for name in ("train.jsonl", "chat.jinja", "run"))
    data.write_text("".join(rows.replace("whale", thing) for thing in THINGS), "utf-8")
    template.write_text(TEMPLATE, "utf-8")
    files = ("--data", data, "--eval_data", data, "--chat_template", template, "--output_dir", out)
    size = ("--max_steps", 12, "--batch_size", 3, "--learning_rate", 3e-3)
    ran = run("--model", BASE, *files, *size, *flags.split())
    assert ran.code == 0, ran.err
    summary = json.loads((out / "summary.json").read_text("utf-8"))
    assert summary["after"]["loss"] < summary["before"]["loss"] * 0.9
    steps = (out / "metrics.jsonl").read_text("utf-8").splitlines()
    assert sum("loss" in json.loads(line) for line in steps) == summary["steps"] == 12
    assert AutoTokenizer.from_pretrained(out / "final").chat_template == TEMPLATE
    reward = flags.startswith("--loss reward")
    kind = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    kind.from_pretrained(out / "final")
