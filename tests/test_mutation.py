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


STEP = {
    "function": "train.optimizer_step",
    "before": "return 1",
    "after": "return 2",
}
TRAIN = """
def x_optimizer_step__mutmut_orig():
    return 1

def x_optimizer_step__mutmut_1():
    return 2
"""
ALL_KILLED = dict.fromkeys(CODES, 1)
STEP_MUTANT = "train.x_optimizer_step__mutmut_1"
OTHERS = ("models", "rollout", "runtime")


def put(folder, module, text, codes):
    """A file as mutmut leaves it, and what became of its mutants."""
    file = folder / f"{module}.py"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text, "utf-8")
    meta = json.dumps({"exit_code_by_key": codes})
    file.with_name(f"{file.name}.meta").write_text(meta, "utf-8")


@pytest.fixture
def folder(tmp_path):
    put(tmp_path, "losses/one", MODULE, CODES)
    elsewhere = {"train.x_count_units__mutmut_1": None, "train.x_train__mutmut_1": 1}
    put(tmp_path, "train", TRAIN, elsewhere)
    return tmp_path


@pytest.fixture
def score(folder, monkeypatch):
    """Call the program on a results file that says `old`: its exit code, and the file after it."""
    monkeypatch.setattr(mutation, "version", lambda name: "1.2.3")
    monkeypatch.setattr(mutation, "commit", lambda: "new")

    def start(old):
        results = folder / "results.json"
        results.write_text(json.dumps(old), "utf-8")
        monkeypatch.setattr("sys.argv", ["mutation", str(results), "--mutants", str(folder)])
        return mutation.main(), json.loads(results.read_text("utf-8"))

    return start


def test_what_survives_is_listed_and_what_was_not_run_is_no_kill(folder):
    found = mutation.summary(folder, {})
    assert found["survivors"] == [BIAS, TOTAL] and found["equivalent"] == []
    losses = {"mutants": 3, "killed": 1, "survived": 2, "score": 1 / 3}
    train = {"mutants": 2, "not run": 1, "killed": 1, "score": 0.5}
    assert found["parts"] == {"losses": losses, "train": train}
    assert found["files"] == {"losses.one": losses, "train": train}


def test_a_part_is_the_sum_of_its_files(folder):
    put(folder, "losses/two", MODULE, {m.replace("one", "two"): 1 for m in CODES})
    put(folder, "losses/three", MODULE, {m.replace("one", "three"): None for m in CODES})
    found = mutation.summary(folder, {})
    assert list(found["files"]) == ["losses.one", "losses.three", "losses.two", "train"]
    assert found["files"]["losses.three"] == {"mutants": 3, "not run": 3, "score": 0.0}
    losses = {"mutants": 9, "killed": 4, "survived": 2, "not run": 3, "score": 4 / 9}
    assert found["parts"]["losses"] == losses


def test_a_reason_written_down_is_kept_and_leaves_the_score(score, capsys):
    code, written = score({"equivalent": [TOTAL | {"why": "two dimensions"}]})
    assert code == 1  # one survives
    assert written["equivalent"] == [TOTAL | {"why": "two dimensions"}]
    assert written["survivors"] == [BIAS] and written["parts"]["losses"]["score"] == 0.5
    assert "losses" in capsys.readouterr().out


def test_every_part_must_be_there_and_run_and_reach_its_goal(folder, score):
    put(folder, "losses/one", MODULE, ALL_KILLED)
    put(folder, "train", TRAIN, {STEP_MUTANT: 1})
    assert score({})[0] == 1  # no models, rollout and runtime
    ten = {part: {f"{part}.one.x_f__mutmut_{i}": 1 for i in range(20)} for part in OTHERS}
    for part in OTHERS:
        put(folder, f"{part}/one", "", ten[part])
    assert score({})[0] == 0
    put(folder, "rollout/one", "", ten["rollout"] | {"rollout.one.x_f__mutmut_0": None})
    code, written = score({})
    assert code == 1 and written["parts"]["rollout"]["score"] == 0.95  # the goal, and one not run
    put(folder, "rollout/one", "", ten["rollout"])
    put(folder, "losses/one", MODULE, ALL_KILLED | {"losses.one.x_total__mutmut_1": 0})
    assert score({})[0] == 1


@pytest.mark.parametrize("there", [True, False])
def test_a_file_that_was_not_run_stays_as_it_was(folder, score, there):
    put(folder, "losses/one", MODULE, ALL_KILLED)
    put(folder, "train", TRAIN, {STEP_MUTANT: None} if there else {})
    old = {
        "commit": "old",
        "files": {
            "losses.one": {"mutants": 7, "survived": 7, "score": 0.0},
            "losses.two": {"mutants": 7, "killed": 7, "score": 1.0},  # there is no such file
            "losses.sft": {"mutants": 9, "killed": 9, "score": 1.0, "commit": "older"},
            "train": {"mutants": 3, "killed": 1, "equivalent": 1, "survived": 1, "score": 0.5},
        },
        "equivalent": [TOTAL | {"why": "is killed now"}, STEP | {"why": "nobody reads it"}],
        "survivors": [BIAS, STEP | {"after": "return 3"}],
    }
    code, written = score(old)
    assert code == 1  # of train.py
    assert written["files"] == {
        "losses.one": {"mutants": 3, "killed": 3, "score": 1.0},
        "losses.sft": old["files"]["losses.sft"],
        "train": old["files"]["train"] | {"commit": "old"},
    }
    assert written["parts"] == {
        "losses": {"mutants": 12, "killed": 12, "score": 1.0},
        "train": old["files"]["train"],
    }
    assert written["equivalent"] == old["equivalent"][1:]
    assert written["survivors"] == old["survivors"][1:] and written["commit"] == "new"


def test_a_reason_outlives_a_run_without_its_mutant(folder, score):
    put(folder, "losses/one", MODULE, ALL_KILLED | {"losses.one.x_total__mutmut_1": None})
    elsewhere = BIAS | {"function": "losses.dpo.Head.bias"}  # of a file that was not mutated
    removed = BIAS | {"function": "losses.two.Head.bias"}  # of one that is not in the project
    no_part = BIAS | {"function": "benchmarks.mutation.Head.bias"}  # of one that does not count
    gone = TOTAL | {"after": "def total(x, dim=+3):"}
    old = [one | {"why": "so"} for one in (TOTAL, BIAS, gone, elsewhere, removed, no_part)]
    code, written = score({"equivalent": old, "note": "as it was"})
    assert code == 1 and written["equivalent"] == [old[3], old[0]]
    assert written["note"] == "as it was"
    assert written["parts"]["losses"] == {"mutants": 3, "killed": 2, "not run": 1, "score": 2 / 3}


def test_a_part_whose_mutants_are_all_equivalent_has_a_score(folder, score):
    put(folder, "losses/one", MODULE, {"losses.one.x_total__mutmut_1": 0})
    _, written = score({"equivalent": [TOTAL | {"why": "so"}]})
    assert written["parts"]["losses"] == {"mutants": 1, "equivalent": 1, "score": 1.0}


@pytest.mark.parametrize("codes", [{}, dict.fromkeys(CODES)])
def test_where_nothing_was_run_nothing_is_written(folder, score, codes, capsys):
    put(folder, "losses/one", MODULE, codes)
    put(folder, "train", TRAIN, {})
    put(folder, "data/one", "", {"data.one.x_f__mutmut_1": 0})  # which is not counted
    old = {"equivalent": [TOTAL | {"why": "so"}]}
    assert score(old) == (2, old)
    error = capsys.readouterr().err
    assert error.startswith(f"{folder}: no mutant was run") and error.count("\n") == 1
