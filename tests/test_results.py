"""The README's tables of the studies are those of the results files, and so is their verdict."""

import json
import re

import pytest
from runs import ROOT

RESULTS = ROOT / "benchmarks" / "results"
README = (ROOT / "README.md").read_text("utf-8")
# README's columns: (name in the results, factor, digits); p-values apart.
COLUMNS = {
    "study-pocket": [
        ("acc", 100, 1),
        ("acc_norm", 100, 1),
        "p_acc",
        ("right", 100, 1),
        ("kl", 1, 2),
    ],
    "study-smollm2-piqa": [
        *[("acc", 100, 1), "p_acc", ("acc_norm", 100, 1), "p_acc_norm"],
        *[("reward", 1, 2), ("kl", 1, 1), ("tokens", 1, 1), ("truncated", 100, 0)],
    ],
}


def read(name):
    return json.loads((RESULTS / name).read_text("utf-8"))


def cell(model, column):
    if isinstance(column, str):
        p = model[column]
        return "< 1e-9" if p < 1e-9 else f"{p:.2g}"
    name, factor, digits = column
    return " ± ".join(f"{factor * number:.{digits}f}" for number in model[name])


@pytest.mark.parametrize("study", COLUMNS)
def test_the_readmes_tables_are_the_studies(study):
    for name, model in read(f"{study}/results.json")["models"].items():
        cells = [cell(model, column) for column in COLUMNS[study]]
        if name == "base":
            cells = [
                "–" if isinstance(c, str) else x for c, x in zip(COLUMNS[study], cells, strict=True)
            ]
        assert f"| {' | '.join([name, *cells])} |\n" in README


@pytest.mark.parametrize("name", ["sft", "ppo", "dpo", "orpo", "sft-dpo", "sft-orpo"])
def test_on_pocket_every_method_beats_the_base_on_every_seed(name):
    each = read("study-pocket/results.json")["models"][name]["each"]
    assert len(each) == 3
    for one in each.values():
        assert one["p_acc"]["p"] < 0.01 and one["p_acc"]["only"] > one["p_acc"]["base_only"]


def test_every_results_file_says_where_it_is_from():
    for path in [p for p in RESULTS.rglob("*.json") if not p.name.startswith("conformance-")]:
        text = path.read_text("utf-8")
        found = json.loads(text)
        assert re.match(r"[0-9a-f]{12}", found["commit"]), path
        assert {"cpu", "cores", "threads"} <= set(found["machine"]), path
        assert '"command": "python' in text and '"torch": "2.' in text, path
