"""The README's tables of the studies are those of the results files, and so is their verdict."""

import json
import re

import pytest
from runs import ROOT

from data import token_cache

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


def said(text):
    """README says this, however its lines are broken."""
    return text in " ".join(README.split())


def test_the_readme_says_what_the_soak_found():
    losses = read("soak.json")["losses"].values()
    assert len(losses) == 5 and {one["steps"] for one in losses} == {2000}
    assert all(one["same weights"] and one["same metrics"] for one in losses)
    stops = sum(one["SIGKILL"] + one["SIGTERM"] for one in losses)
    files = sum(one["damaged"] for one in losses)
    growth = max(one["memory, bytes a minute"] for one in losses) / 1e6
    assert said(f"{stops} in all and {files} files:")
    assert said(f"memory grows by {growth:.0f} MB a minute at most")


def test_the_readme_says_what_a_million_rows_cost():
    (point,) = [p for p in read("scaling.json")["curves"]["rows"] if p["x"] == 1_000_000]
    first, second = point["first"], point["second"]
    assert said(f"came {first['first step seconds']:.0f} s after the command, at the second start")
    assert said(f"{second['first step seconds']:.0f} s after it")
    assert said(f"with {second['data bytes'] / 1e6:.0f} MB of memory for the data")
    assert first["digests"] == second["digests"]  # the same tokens
    assert said(f"data files of {token_cache.LEAST_BYTES >> 20} MiB and more")
    assert said(f"not used for {token_cache.KEPT_DAYS} days is removed")


def test_the_readme_says_what_bfloat16_changes():
    runs = read("precision.json")["runs"]

    def mean(loss, precision, when):
        found = [r for r in runs if (r["loss"], r["precision"]) == (loss, precision)]
        assert len(found) == 3 and {r["steps"] for r in found} == {25}
        return f"{sum(r[when]['loss'] for r in found) / 3:.3f}"

    after, before = ([mean("sft", p, when) for p in ("bf16", "no")] for when in ("after", "before"))
    text = "{} in bfloat16 and {} in float32, from {} and {}"
    assert said(f"held-out SFT loss of {text.format(*after, *before)}")
    dpo = {mean("dpo", precision, "after") for precision in ("bf16", "no")}
    assert len(dpo) == 1 and said(f"DPO's is {dpo.pop()} in both")


def test_the_readme_says_what_kills_and_saves_cost():
    kills = read("interruptions.json")
    saving = read("saving.json")
    share = saving["share of the time at one save a minute"]
    size = saving["bytes of a checkpoint"] / 1e9
    assert said(f"costs SmolLM2-135M {100 * share:.1f} % of its time at one save a minute")
    assert said(f"{size:.1f} GB a checkpoint")
    assert kills["not the same"] == [] and said(f"{sum(kills['kills'].values()):,} kills")


def test_every_results_file_says_where_it_is_from():
    for path in [p for p in RESULTS.rglob("*.json") if not p.name.startswith("conformance-")]:
        text = path.read_text("utf-8")
        found = json.loads(text)
        assert re.match(r"[0-9a-f]{12}", found["commit"]), path
        assert {"cpu", "cores", "threads"} <= set(found["machine"]), path
        assert '"command": "python' in text and '"torch": "2.' in text, path
