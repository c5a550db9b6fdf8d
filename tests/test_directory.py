"""The run directory: who holds it, what is in it at every moment, and what an end leaves."""

import json
import os
import re
import socket

import pytest
from filelock import FileLock

from data.errors import CANNOT_CREATE, InputError
from runtime import directory as directory_module
from runtime.directory import RunDirectory
from runtime.files import read_json

NOW = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}"


class Saved:
    """A model or a tokenizer, to the run directory."""

    def __init__(self, name, fails=False):
        self.name, self.fails = name, fails

    def save_pretrained(self, folder):
        folder.mkdir(exist_ok=True)
        (folder / self.name).write_text("saved", "utf-8")
        if self.fails:
            raise OSError("No space left on device")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def status(path):
    return read_json(path / "status.json")


def take(path, **options):
    return RunDirectory(path, **{"overwrite": False} | options)


def refusal(path, **options):
    with pytest.raises(InputError) as caught:
        take(path, **options)
    assert caught.value.exit_code == CANNOT_CREATE
    return str(caught.value)


SUMMARY = {"loss": "dpo", "model": "pocket", "data": "rows.jsonl", "after": {"loss": 0.5}}


def finish(run, model=None, drawn=None):
    drawn = [] if drawn is None else drawn

    def save(folder):
        for part in (model or Saved("model"), Saved("tokenizer")):
            part.save_pretrained(folder)

    run.finish(SUMMARY, save, card="card — é", draw=lambda *arguments: drawn.append(arguments))


def earlier_run(path):
    """What a finished run left."""
    run = take(path)
    run.begin({"number": 1})
    run.log({"step": 1})
    run.log_samples(1, [{"prompt": "a"}])
    finish(run)
    run.close()
    (path / "curves.png").write_bytes(b"")
    (path / "final.partial").mkdir()
    (path / "notes.txt").write_text("the user's own", "utf-8")


def test_the_files_of_a_run_from_its_beginning_to_its_end(tmp_path, ascii_locale):
    path, drawn = tmp_path / "a" / "out", []
    run = take(path)
    assert run.path == path and run.writes
    assert names(path) == ["run.lock", "status.json"]
    waiting = status(path)
    assert waiting.pop("state") == "waiting" and waiting.keys() == {"pid", "host", "started", "at"}
    assert (waiting["pid"], waiting["host"]) == (os.getpid(), socket.gethostname())
    assert re.fullmatch(NOW, waiting["started"]) and re.fullmatch(NOW, waiting["at"])

    run.begin({"train": {"seed": 3}})
    assert names(path) == ["config.json", "metrics.jsonl", "run.lock", "status.json"]
    assert read_json(path / "config.json") == {"train": {"seed": 3}}
    assert (path / "metrics.jsonl").read_bytes() == b""
    assert status(path)["state"] == "running"

    # each line is in the file at once, and what is not finite is null
    run.log({"step": 1, "loss": 0.5})
    assert (path / "metrics.jsonl").read_text("utf-8") == '{"step": 1, "loss": 0.5}\n'
    run.log({"step": 2, "loss": float("nan"), "grad_norm": float("inf")})
    lines = (path / "metrics.jsonl").read_text("utf-8").splitlines()
    assert lines[1:] == ['{"step": 2, "loss": null, "grad_norm": null}']

    assert not (path / "samples.jsonl").exists()
    run.log_samples(2, [])
    assert not (path / "samples.jsonl").exists()
    run.log_samples(2, [{"prompt": "a"}, {"prompt": "b"}])
    run.log_samples(4, [{"prompt": "c"}])
    samples = (path / "samples.jsonl").read_text("utf-8").splitlines()
    assert samples == [
        '{"step": 2, "prompt": "a"}',
        '{"step": 2, "prompt": "b"}',
        '{"step": 4, "prompt": "c"}',
    ]

    finish(run, drawn=drawn)
    assert names(path / "final") == ["README.md", "model", "tokenizer"]
    assert (path / "final" / "README.md").read_bytes() == "card — é".encode()
    assert not (path / "final.partial").exists()
    assert read_json(path / "summary.json") == SUMMARY
    picture = (path / "metrics.jsonl", path / "curves.png", "dpo, pocket, rows.jsonl")
    assert drawn == [picture]
    ended = status(path)
    assert (ended["state"], ended["exit_code"], ended["pid"]) == ("finished", 0, os.getpid())
    assert ended["started"] == waiting["started"]
    run.close()


def test_what_does_not_write_leaves_nothing(tmp_path):
    """Other ranks, and dry runs."""
    run = take(tmp_path / "out", writes=False)
    run.begin({})
    run.log({"step": 1})
    run.log_samples(1, [{"prompt": "a"}])
    finish(run)
    run.fail("a reason", 1)
    run.close()
    assert names(tmp_path) == []
    earlier_run(tmp_path / "out")
    before = {f: f.read_bytes() for f in (tmp_path / "out").rglob("*") if f.is_file()}
    run = take(tmp_path / "out", writes=False)
    run.begin({})
    run.fail("a reason", 1)
    assert {f: f.read_bytes() for f in (tmp_path / "out").rglob("*") if f.is_file()} == before


def test_a_directory_in_use_is_refused_by_who_has_it(tmp_path):
    first = take(tmp_path)
    started = status(tmp_path)["started"]
    owner = f"process {os.getpid()} on {socket.gethostname()}, since {started}"
    for state in ("waiting", "running"):
        assert status(tmp_path)["state"] == state
        assert refusal(tmp_path) == f"{tmp_path}: a run is going on here ({owner})"
        assert refusal(tmp_path, overwrite=True).endswith(f"({owner})")
        first.begin({})
    first.close()
    take(tmp_path).close()


def test_a_status_that_is_an_earlier_runs_is_not_the_owners(tmp_path):
    with FileLock(tmp_path / "run.lock"):
        assert refusal(tmp_path) == f"{tmp_path}: a run is going on here (it has just begun)"
    earlier_run(tmp_path)
    with FileLock(tmp_path / "run.lock"):
        assert refusal(tmp_path).endswith("(it has just begun)")


def test_a_directory_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("", "utf-8")
    for path in (tmp_path / "file", tmp_path / "file" / "out"):
        assert re.fullmatch(f"{path}: (File exists|Not a directory); see .*", refusal(path))


@pytest.mark.parametrize("state", ["finished", "unfinished"])
def test_an_earlier_run_is_kept(tmp_path, state):
    earlier_run(tmp_path)
    if state == "unfinished":
        (tmp_path / "status.json").unlink()
    before = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    for _ in range(2):  # the refusal lets go of the lock
        text = refusal(tmp_path)
        assert text.startswith(f"{tmp_path} holds a run already ({state}); give --output_dir")
    assert {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()} == before


def test_a_run_that_wrote_no_step_is_no_earlier_run(tmp_path):
    run = take(tmp_path)
    run.begin({})
    run.close()
    take(tmp_path).close()


def test_an_earlier_run_is_replaced_only_when_the_new_one_begins(tmp_path):
    earlier_run(tmp_path)
    before = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    run = take(tmp_path, overwrite=True)
    assert {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()} == before
    run.fail("a damaged model", 65)  # and not when it ends before
    assert {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()} == before

    run = take(tmp_path, overwrite=True)
    run.begin({"number": 2})
    kept = ["config.json", "metrics.jsonl", "notes.txt", "run.lock", "status.json"]
    assert names(tmp_path) == kept
    assert read_json(tmp_path / "config.json") == {"number": 2}
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""
    assert status(tmp_path)["state"] == "running"
    run.log({"step": 1})
    run.fail("interrupted", 75)
    assert status(tmp_path)["state"] == "failed"


@pytest.mark.parametrize("begun", [False, True])
def test_a_failure_is_recorded_and_the_lock_is_free(tmp_path, begun):
    run = take(tmp_path)
    if begun:
        run.begin({})
    run.fail("the reason", 76)
    found = status(tmp_path)
    assert (found["state"], found["reason"], found["exit_code"]) == ("failed", "the reason", 76)
    assert not begun or run._metrics.closed
    take(tmp_path).close()


def test_a_disk_too_full_for_the_reason_is_no_second_error(tmp_path, monkeypatch):
    run = take(tmp_path)

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(directory_module, "write_json", full)
    run.fail("the reason", 74)
    take(tmp_path, writes=False)
    monkeypatch.undo()
    take(tmp_path).close()


def test_a_model_half_saved_is_not_called_final(tmp_path):
    run = take(tmp_path)
    run.begin({})
    with pytest.raises(OSError, match="No space"):
        finish(run, model=Saved("model", fails=True))
    assert not (tmp_path / "final").exists() and (tmp_path / "final.partial" / "model").exists()
    assert status(tmp_path)["state"] == "running" and not (tmp_path / "summary.json").exists()
    run.close()


def test_texts_in_samples_are_read_back_as_they_were(tmp_path, ascii_locale):
    run = take(tmp_path)
    run.begin({})
    run.log_samples(1, [{"prompt": "é — 1\n"}])
    run.close()
    (line,) = (tmp_path / "samples.jsonl").read_text("utf-8").splitlines()
    assert json.loads(line) == {"step": 1, "prompt": "é — 1\n"}
