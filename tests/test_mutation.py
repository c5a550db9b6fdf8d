"""benchmarks.mutation: the score, from what mutmut leaves behind, and reasons that are kept."""

import json

import pytest

from benchmarks import mutation

MODULE = """
class Head:
    def xǁHeadǁbias__mutmut_orig(self):
        return self.a - 1

    def xǁHeadǁbias__mutmut_1(self):
        return self.a + 1

def x_total__mutmut_orig(x, dim=-1):
    return x.sum(
        dim
    )

def x_total__mutmut_1(x, dim=+1):
    return x.sum(
        dim
    )

def x_total__mutmut_2(x, dim=-2):
    return x.sum(dim)
"""
BIAS = {
    "function": "losses.one.Head.bias",
    "before": "return self.a - 1",
    "after": "return self.a + 1",
}
TOTAL = {
    "function": "losses.one.total",
    "before": "def total(x, dim=-1):",
    "after": "def total(x, dim=+1):",
}
CODES = {
    "losses.one.xǁHeadǁbias__mutmut_1": 33,  # no test
    "losses.one.x_total__mutmut_1": 0,
    "losses.one.x_total__mutmut_2": 1,
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses" / "one.py").write_text(MODULE, "utf-8")
    meta = tmp_path / "losses" / "one.py.meta"
    meta.write_text(json.dumps({"exit_code_by_key": CODES}), "utf-8")
    elsewhere = {"train.x_count_units__mutmut_1": None, "train.x_train__mutmut_1": 0}
    (tmp_path / "train.py.meta").write_text(json.dumps({"exit_code_by_key": elsewhere}), "utf-8")
    return tmp_path


def test_what_survives_is_listed_and_what_was_not_run_is_no_kill(folder):
    found = mutation.summary(folder, {})
    assert found["survivors"] == [BIAS, TOTAL] and found["equivalent"] == []
    assert found["parts"] == {
        "losses": {"mutants": 3, "killed": 1, "survived": 2, "score": 1 / 3},
        "reduction": {"mutants": 1, "not run": 1, "score": 0},
    }


def test_a_reason_written_down_is_kept_and_leaves_the_score(folder, tmp_path, monkeypatch, capsys):
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"equivalent": [TOTAL | {"why": "two dimensions"}]}), "utf-8")
    monkeypatch.setattr("sys.argv", ["mutation", str(results), "--mutants", str(folder)])
    monkeypatch.setattr(mutation, "version", lambda name: "1.2.3")
    assert mutation.main() == 1  # one survives
    written = json.loads(results.read_text("utf-8"))
    assert written["equivalent"] == [TOTAL | {"why": "two dimensions"}]
    assert written["survivors"] == [BIAS] and written["parts"]["losses"]["score"] == 0.5
    assert "losses" in capsys.readouterr().out
    all_killed = dict.fromkeys(CODES, 1) | {"losses.one.x_total__mutmut_1": 0}
    for name, codes in (("losses/one", all_killed), ("train", {})):
        meta = json.dumps({"exit_code_by_key": codes})
        (folder / f"{name}.py.meta").write_text(meta, "utf-8")
    assert mutation.main() == 0
