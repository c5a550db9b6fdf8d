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


def model(*names, fails=False):
    """What writes a model's files into a folder."""

    def write(folder):
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("saved", "utf-8")
        if fails:
            raise OSError("No space left on device")

    return write


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


def finish(run):
    run.save("final", model("model", "tokenizer"))
    run.finish(SUMMARY)


def earlier_run(path):
    """What a finished run left, and what its user put beside it."""
    run = take(path)
    run.begin({"number": 1})
    run.log({"step": 1})
    run.log_samples(1, [{"prompt": "a"}])
    run.own("curves.png")
    (path / "curves.png").write_bytes(b"")
    finish(run)
    run.close()
    (path / "final.partial").mkdir()
    (path / "notes.txt").write_text("the user's own", "utf-8")
    (path / "final" / "notes.txt").write_text("the user's own", "utf-8")


def contents(folder):
    return {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_the_files_of_a_run_from_its_beginning_to_its_end(tmp_path, ascii_locale):
    path = tmp_path / "a" / "out"
    run = take(path)
    assert run.path == path and run.writes
    assert names(path) == ["run.json", "run.lock", "status.json"]
    waiting = status(path)
    assert waiting.pop("state") == "waiting" and waiting.keys() == {"pid", "host", "started", "at"}
    assert (waiting["pid"], waiting["host"]) == (os.getpid(), socket.gethostname())
    assert re.fullmatch(NOW, waiting["started"]) and re.fullmatch(NOW, waiting["at"])

    run.begin({"train": {"seed": 3}})
    begun = ["config.json", "metrics.jsonl", "run.json", "run.lock", "status.json"]
    assert names(path) == begun
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

    finish(run)
    assert names(path / "final") == ["model", "tokenizer"]
    assert not (path / "final.partial").exists()
    assert read_json(path / "summary.json") == SUMMARY
    listed = {"final/model", "final/tokenizer", "metrics.jsonl", "samples.jsonl", "summary.json"}
    assert listed <= set(read_json(path / "run.json")["files"])
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


def test_a_finished_run_is_kept(tmp_path):
    earlier_run(tmp_path)
    before = contents(tmp_path)
    for _ in range(2):  # the refusal lets go of the lock
        assert refusal(tmp_path).startswith(f"{tmp_path} holds a finished run; give --output_dir")
    assert contents(tmp_path) == before


def test_a_run_that_did_not_finish_is_gone_on_with(tmp_path):
    first = take(tmp_path)
    assert not first.unfinished
    first.begin({"number": 1})
    first.log({"step": 1})
    sizes = first.log_sizes()
    first.log({"step": 2})
    first.log_samples(2, [{"prompt": "a"}])
    assert sizes == {"metrics.jsonl": 12}
    first.fail("no power", 1)

    run = take(tmp_path)
    assert run.unfinished and run.earlier == "failed: no power"
    run.fail("a flag is wrong", 2)  # before it began: that is not the run's end
    assert status(tmp_path)["reason"] == "no power"
    run = take(tmp_path)
    assert run.has(sizes) and not run.has({"metrics.jsonl": 25}) and not run.has({"x": 0})
    run.resume({"number": 2}, sizes)
    assert (tmp_path / "metrics.jsonl").read_text("utf-8") == '{"step": 1}\n'
    assert (tmp_path / "samples.jsonl").read_bytes() == b""
    assert read_json(tmp_path / "config.json") == {"number": 2}
    run.log({"step": 2})
    assert (tmp_path / "metrics.jsonl").read_text("utf-8") == '{"step": 1}\n{"step": 2}\n'
    run.close()
    assert take(tmp_path).earlier == f"process {os.getpid()} ended without a word"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["config.json", "final/model.safetensors", "metrics.jsonl", "x"])
def test_a_folder_that_no_run_made_is_never_written_to(tmp_path, name, overwrite):
    """A model's own folder has a config.json, somebody else's a final/."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}", "utf-8")
    before = contents(tmp_path)
    text = refusal(tmp_path, overwrite=overwrite)
    first = name.split("/")[0]
    assert text.startswith(f"{tmp_path} is no run directory and has files ({first}); give")
    assert contents(tmp_path) == before and names(tmp_path) == [first]
    (tmp_path / "run.json").write_text('{"made_by": "something else"}', "utf-8")
    assert "is no run directory" in refusal(tmp_path, overwrite=overwrite)


def test_a_run_that_was_killed_while_it_wrote_its_marker_is_no_stranger(tmp_path):
    take(tmp_path).close()
    (tmp_path / "status.json").unlink()
    (tmp_path / "run.json").rename(tmp_path / "run.json.partial")
    run = take(tmp_path)
    run.begin({})
    assert names(tmp_path) == [
        "config.json",
        "metrics.jsonl",
        "run.json",
        "run.lock",
        "status.json",
    ]


def test_links_are_not_followed(tmp_path):
    """Laid in a run's directory, they would have files elsewhere removed or written."""
    path, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("model", "log", "status", "partial"):
        (elsewhere / name).write_text("the user's own", "utf-8")
    before = contents(elsewhere)
    earlier_run(path)
    for name in ("model", "tokenizer", "notes.txt"):
        (path / "final" / name).unlink()
    (path / "final").rmdir()
    (path / "final").symlink_to(elsewhere)
    (path / "metrics.jsonl").unlink()
    (path / "metrics.jsonl").symlink_to(elsewhere / "log")
    (path / "status.json").unlink()
    (path / "status.json").symlink_to(elsewhere / "status")
    (path / "config.json.partial").symlink_to(elsewhere / "partial")
    run = take(path, overwrite=True)
    run.begin({})
    (path / "metrics.jsonl").unlink()
    (path / "metrics.jsonl").symlink_to(elsewhere / "log")
    run.log({"step": 1})
    assert not (path / "metrics.jsonl").is_symlink()
    assert contents(elsewhere) == before
    run.close()


def test_a_list_that_points_elsewhere_removes_nothing_there(tmp_path):
    earlier_run(tmp_path / "out")
    (tmp_path / "mine").write_text("the user's own", "utf-8")
    marker = read_json(tmp_path / "out" / "run.json")
    marker["files"] += ["../mine", str(tmp_path / "mine"), "final/../../mine"]
    (tmp_path / "out" / "run.json").write_text(json.dumps(marker), "utf-8")
    run = take(tmp_path / "out", overwrite=True)
    run.begin({})
    run.close()
    assert (tmp_path / "mine").exists()


def test_an_earlier_run_is_replaced_only_when_the_new_one_begins(tmp_path):
    earlier_run(tmp_path)
    before = contents(tmp_path)
    run = take(tmp_path, overwrite=True)
    assert contents(tmp_path) == before and not run.unfinished
    run.fail("a damaged model", 65)  # and not when it ends before
    assert contents(tmp_path) == before

    run = take(tmp_path, overwrite=True)
    run.begin({"number": 2})
    kept = ["config.json", "final", "metrics.jsonl", "notes.txt", "run.json", "run.lock"]
    assert names(tmp_path) == [*kept, "status.json"]
    assert names(tmp_path / "final") == ["notes.txt"]  # the user's own stays
    assert read_json(tmp_path / "config.json") == {"number": 2}
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""
    assert status(tmp_path)["state"] == "running"
    run.log({"step": 1})
    run.fail("interrupted", 75, "stopped")
    assert status(tmp_path)["state"] == "stopped"


@pytest.mark.parametrize("begun", [False, True])
def test_a_failure_is_recorded_and_the_lock_is_free(tmp_path, begun):
    run = take(tmp_path)
    if begun:
        run.begin({})
    run.fail("the reason", 76)
    found = status(tmp_path)
    assert (found["state"], found["reason"], found["exit_code"]) == ("failed", "the reason", 76)
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
        run.save("final", model("model", fails=True))
    assert not list(tmp_path.glob("final*")) and status(tmp_path)["state"] == "running"
    run.save("best", model("old", "both"))
    with pytest.raises(OSError, match="No space"):
        run.save("best", model("new", fails=True))
    assert names(tmp_path / "best") == ["both", "old"]  # the last one that was whole
    run.save("best", model("new", "both"))
    assert names(tmp_path / "best") == ["both", "new"]
    (tmp_path / "best" / "notes.txt").write_text("the user's own", "utf-8")
    run.save("best", model("newer"))
    assert names(tmp_path / "best") == ["newer", "notes.txt"]
    run.close()


def test_after_its_end_a_run_is_not_called_failed(tmp_path):
    """Whatever goes wrong once final/ and summary.json are there."""
    run = take(tmp_path)
    run.begin({})
    finish(run)
    run.fail("a picture could not be drawn", 1)
    assert status(tmp_path)["state"] == "finished"


def test_texts_in_samples_are_read_back_as_they_were(tmp_path, ascii_locale):
    run = take(tmp_path)
    run.begin({})
    run.log_samples(1, [{"prompt": "é — 1\n"}])
    run.close()
    (line,) = (tmp_path / "samples.jsonl").read_text("utf-8").splitlines()
    assert json.loads(line) == {"step": 1, "prompt": "é — 1\n"}
