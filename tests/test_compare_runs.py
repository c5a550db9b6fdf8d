"""The comparison study's stages and report, with a stand-in for train.py; slow: the real thing."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from runs import BASE, OFFLINE, ROOT, pocket_rows, write_rows
from test_compare import Checked

from benchmarks.compare import make_study, parse
from benchmarks.study.plan import STAGES, Stage, Study, parse_settings
from benchmarks.study.runner import run_stages
from data.errors import InputError

FAKE = (sys.executable, str(ROOT / "tests" / "fake_train.py"))


class Fake:
    """A study whose stages are made by tests/fake_train.py."""

    def __init__(self, folder, monkeypatch, **about):
        self.log, self.settings = folder / "log", folder / "fake.json"
        about = {"jobs": 1, "seeds": (0,), "pairs": 64} | about
        self.study = Study(output_dir=folder / "report", trainer=FAKE, **about)
        monkeypatch.setenv("FAKE_TRAIN", str(self.settings))
        self.told = []
        self.set()

    def set(self, fail=(), seconds=0.0, real=False):
        how = {"fail": fail, "seconds": seconds, "real": real}
        how |= {"log": str(self.log), "base": str(BASE)}
        self.settings.write_text(json.dumps(how))

    def run(self, **change):
        """(how each stage ended, which were started) of one call."""
        self.log.write_text("")
        self.told.clear()
        outcomes = run_stages(replace(self.study, **change), self.told.append)
        return {f"{seed} {name}": o.state for (seed, name), o in outcomes.items()}, self.started()

    def started(self):
        lines = [line.split() for line in self.log.read_text().splitlines()]
        return [line[2] for line in lines if line[0] == "start"]


@pytest.fixture
def fake(tmp_path, monkeypatch):
    return Fake(tmp_path, monkeypatch)


ALL = [stage.name for stage in STAGES]


def test_a_finished_stage_is_not_run_again(fake):
    outcomes, started = fake.run()
    assert started == ALL and set(outcomes.values()) == {"finished"}
    again, started = fake.run()
    assert started == [] and again == outcomes
    assert "seed 0 ppo: finished before, kept" in fake.told


def test_a_changed_flag_runs_its_stage_and_what_is_built_on_it(fake):
    fake.run()
    _, started = fake.run(extra=parse_settings(["dpo=--beta 0.2"]))
    assert started == ["dpo"]
    assert "seed 0 dpo: starts again, with other flags or another start" in fake.told
    _, started = fake.run(extra=parse_settings(["dpo=--beta 0.2", "sft=--warmup 0"]))
    assert started == ["sft", "ppo", "sft-dpo", "sft-orpo"]


def test_a_run_that_does_not_say_finished_is_made_again(fake):
    fake.run()
    run = fake.study.directory(0, "orpo")
    (run / "status.json").write_text('{"state": "running"}')
    (run / "left-over").write_text("")
    _, started = fake.run()
    assert started == ["orpo"] and not (run / "left-over").exists()


def test_a_failed_stage_is_named_and_the_rest_goes_on(fake):
    fake.set(fail=["reward"])
    outcomes = run_stages(fake.study, fake.told.append)
    states = {name: (o.state, o.reason) for (_, name), o in outcomes.items()}
    assert states.pop("reward") == ("failed", "exit code 65, train.py: reward does not want to")
    assert states.pop("ppo") == ("skipped", "needs reward")
    assert set(states.values()) == {("finished", "")}
    fake.set()
    outcomes, started = fake.run()
    assert started == ["reward", "ppo"] and set(outcomes.values()) == {"finished"}


def test_what_needs_a_skipped_stage_is_skipped_too_and_other_seeds_are_not(fake):
    more = (*STAGES, Stage("ppo-dpo", "dpo", start="ppo"))
    fake.run(seeds=(1,), stages=more)
    fake.set(fail=["reward"])
    outcomes, _ = fake.run(seeds=(0, 1), stages=more)
    assert {name for name, state in outcomes.items() if state == "skipped"} == {
        "0 ppo", "0 ppo-dpo"
    }  # fmt: skip
    assert "seed 0 ppo-dpo: skipped, needs ppo" in fake.told


def test_stages_side_by_side_wait_for_what_they_need(fake):
    fake.set(seconds=0.5)
    fake.run(jobs=2)
    going, most, done = set(), 0, set()
    needs = {stage.name: stage.needs for stage in STAGES}
    for line in fake.log.read_text().splitlines():
        what, _, name = line.split()[:3]
        if what == "start":
            assert set(needs[name]) <= done
            going.add(name)
        else:
            going.remove(name)
            done.add(name)
        most = max(most, len(going))
    assert most == 2 and done == set(ALL)


def test_progress_and_time_left_are_told(fake):
    fake.run()
    ends = [line for line in fake.told if line.startswith("[")]
    assert [line.split("]")[0] for line in ends] == [f"[{i}/7" for i in range(1, 8)]
    assert "less than a minute left" in ends[0] and "left" not in ends[-1]


CODE = """
import json, signal, sys
from pathlib import Path
from benchmarks.study.plan import Study
from benchmarks.study.runner import run_stages
signal.signal(signal.SIGTERM, signal.default_int_handler)
folder, trainer = sys.argv[1], json.loads(sys.argv[2])
study = Study(output_dir=Path(folder), seeds=(0,), pairs=64, trainer=tuple(trainer))
run_stages(study, print)
"""


def test_sigterm_ends_the_running_stage_and_only_that_is_made_again(fake):
    fake.run(stages=STAGES[:1])
    fake.set(seconds=60)
    command = [sys.executable, "-c", CODE, str(fake.study.output_dir), json.dumps(FAKE)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    pid = wait_for(lambda: [ln for ln in fake.log.read_text().splitlines() if "reward" in ln])
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid[0].split()[3]), 0)
    fake.set()
    assert fake.run()[1] == ALL[1:]


def wait_for(ready, seconds=30.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := ready():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not happen")


# ---------------------------------------------------------------- the report


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The whole way on the base model's own weights and a few rows; the reward stage of seed 1
    fails."""
    from benchmarks.study import collect, measure, pictures
    from benchmarks.study import report as pages

    folder = tmp_path_factory.mktemp("study")
    data = write_rows(folder / "rows", *pocket_rows(8, 8))
    note = "Rows of somewhere else."
    with pytest.MonkeyPatch.context() as patch:
        fake = Fake(folder, patch, data=str(data), samples=8, max_new_tokens=12, note=note,
            command=f"python -m benchmarks.compare --data {data} --jobs 2",
        )  # fmt: skip
        fake.set(real=True)
        run_stages(fake.study, fake.told.append)
        study = replace(fake.study, seeds=(0, 1), stages=STAGES[:4])
        fake.set(real=True, fail=["reward"])
        outcomes = run_stages(study, fake.told.append)
        unmeasured = measure.measure_all(study, outcomes, fake.told.append)
        results = collect.collect(study, outcomes, unmeasured)
        pages.write(study, results, pictures.draw(study, results))
        fake.told.clear()
        measure.measure_all(study, outcomes, fake.told.append)
    return study, results, fake.told


def test_a_model_that_cannot_be_measured_is_reported_and_the_rest_goes_on(fake, monkeypatch):
    from benchmarks.study import collect, measure
    from benchmarks.study.tables import in_all

    rows = [[-1.0, -2.0, 1, 1], [-2.0, -1.0, 0, 0]]
    answers = {"kl": [0.0], "tokens": [3], "finished": [True], "prompts": ["p"], "texts": ["t"]}
    broken = {"sft/final": {"rows": [[math.nan, -1.0, 0, 0]]}, "dpo/final": InputError("damaged")}

    def accuracy(self, subject):
        found = next((x for end, x in broken.items() if str(subject).endswith(end)), {"rows": rows})
        if isinstance(found, InputError):
            raise found
        return found | {"scored_by": "nobody"}

    monkeypatch.setattr(measure.Bench, "load", lambda self, name: name)
    monkeypatch.setattr(measure.Bench, "accuracy", accuracy)
    monkeypatch.setattr(measure.Bench, "answers", lambda self, subject: answers)
    fake.run(stages=STAGES[:5])
    study = replace(fake.study, stages=STAGES[:5])
    outcomes = run_stages(study, fake.told.append)
    unmeasured = measure.measure_all(study, outcomes, fake.told.append)
    results = collect.collect(study, outcomes, unmeasured)
    assert list(results["models"]) == ["base", "ppo", "orpo"]
    assert list(results["costs"]) == [stage.name for stage in STAGES[:5]]  # they were trained
    seen = [results["costs"][name][0]["pairs"] for name in ("sft", "reward", "ppo")]
    assert in_all(study, results, study.stage("ppo")) == sum(seen) and min(seen) > 0
    assert [(one["stage"], one["reason"]) for one in results["failures"]] == [
        ("sft", "cannot be measured: its log-probabilities of held-out pairs are not finite"),
        ("dpo", "cannot be measured: damaged"),
    ]
    broken[""] = InputError("damaged too")
    shutil.rmtree(study.output_dir / "answers")
    with pytest.raises(InputError, match="the base model cannot be measured: damaged too"):
        measure.measure_all(study, outcomes, fake.told.append)


def test_nothing_is_measured_twice(report):
    assert report[2] == []


def test_numbers_of_untrained_models_are_those_of_the_base(report):
    study, results, _ = report
    models = results["models"]
    assert models["ppo"]["seeds"] == [0] and models["dpo"]["seeds"] == [0, 1]
    for name in ("sft", "dpo"):
        assert models[name]["acc"] == models["base"]["acc"]
        assert models[name]["kl"] == (0.0, 0.0) and models[name]["p_acc"] == 1.0
    assert results["failures"] == [
        {"seed": 1, "stage": "reward", "state": "failed",
         "reason": "exit code 65, train.py: reward does not want to"},
        {"seed": 1, "stage": "ppo", "state": "skipped", "reason": "needs reward"},
    ]  # fmt: skip
    saved = json.loads((study.output_dir / "results.json").read_text("utf-8"))
    assert saved["models"]["sft"]["acc"] == list(models["sft"]["acc"])
    assert str(study.output_dir.parent) not in json.dumps(saved)
    where = f"{study.output_dir.parent.name}/rows"  # no more of the path
    assert saved["command"] == f"python -m benchmarks.compare --data {where} --jobs 2"
    assert saved["pairs"] == 64 and saved["note"] == "Rows of somewhere else."


def test_the_page_has_every_piece(report):
    study = report[0]
    page = (study.output_dir / "report.md").read_text("utf-8")
    for piece in (
        "acc, %", "acc\\_norm, %", "p, acc", "KL to base, nats", "tokens an answer", "seconds",
        "peak memory, MiB", "log p chosen", "log p rejected", "Does the chosen log-prob fall?",
        "reward against KL", "ppo (seeds 0)", "every stage sees 64 pairs",
        "seed 1 reward failed: exit code 65, train.py: reward does not want to",
        "seed 1 ppo skipped: needs reward", "Against base by acc",
        "--loss dpo", "--output_dir",
    ):  # fmt: skip
        assert piece in page, piece
    assert str(study.output_dir.parent) not in page  # where files lay is nobody's business
    captions = [line for line in page.splitlines() if line.startswith("*")]
    assert len(captions) == 12 and all("Rows of somewhere else." in line for line in captions)
    for name in ("base", "sft", "ppo", "dpo"):
        table = page.split(f"\n### {name}\n")[1].split("\n*")[0]
        assert table.count("\n| Question") == 8  # the held-out prompts there are, at most ten
    pictures = [line.split("](")[1].rstrip(")") for line in page.splitlines() if line[:2] == "!["]
    assert len(pictures) == 6
    for picture in pictures:
        assert (study.output_dir / picture).read_bytes().startswith(b"\x89PNG")


def test_the_html_page_is_one_file_with_the_same_content(report):
    folder = report[0].output_dir
    checked = Checked((folder / "report.html").read_text("utf-8"))
    assert checked.images == 6
    for piece in (
        "KL to base, nats",
        "seed 1 ppo skipped: needs reward",
        "Rows of somewhere else.",
    ):
        assert piece in checked.text


# ---------------------------------------------------------------- the real thing


QUICK = ("--pairs", "64", "--samples", "24", "--evals", "1", "--seeds", "0",
         "--stages", "sft", "reward", "ppo")  # fmt: skip


def compare(folder, *more, kill_after=None):
    command = [sys.executable, "-m", "benchmarks.compare", *QUICK, "--output_dir", folder, *more]
    env = os.environ | OFFLINE
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
    try:
        return process.wait(kill_after)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def table(folder):
    """The results but for what a clock, the machine or somebody's commit wrote."""
    found = json.loads((folder / "results.json").read_text("utf-8"))
    del found["commit"], found["machine"], found["command"]  # with the directory's name
    for by_seed in found["costs"].values():
        for one in by_seed.values():
            del one["seconds"], one["peak_memory_bytes"]
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_anywhere_and_started_again_gives_the_same_table(tmp_path):
    assert compare(tmp_path / "whole") == 0
    killed = 0
    for seconds in (8, 14, 25, 40):
        killed += compare(tmp_path / "killed", kill_after=seconds) != 0
    assert compare(tmp_path / "killed") == 0
    assert killed > 1
    assert table(tmp_path / "killed") == table(tmp_path / "whole")


def test_two_studies_do_not_share_a_directory(tmp_path):
    from filelock import FileLock

    from benchmarks.compare import run

    tmp_path.mkdir(exist_ok=True)
    study = make_study(parse(["--output_dir", str(tmp_path)]))
    with FileLock(tmp_path / "study.lock"), pytest.raises(Exception, match="a study is going on"):
        run(study)
