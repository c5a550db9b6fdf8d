"""Checkpoints: whole or not there, and none that is damaged is used."""

import json
import os
import random
import resource
import shutil
import signal

import pytest
import torch
from runs import (
    copy_base,
    pocket_rows,
    read,
    run,
    saves_are_done,
    timeless,
    weights,
    write_rows,
)
from safetensors.torch import save_file

from data import errors
from runtime.checkpoints.store import MANIFEST, Checkpoint, Damaged, Store

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", MANIFEST)
FLAGS = ("--loss", "dpo", "--max_steps", 9, "--batch_size", 8, "--learning_rate", 1e-3)
FLAGS = (*FLAGS, "--save_every", 3)


def made(step, value=1.0):
    tensors = {"model": {"w": torch.full((64,), value)}, "optimizer": {"exp_avg/w": torch.ones(64)}}
    return Checkpoint(step, {"step": step, "logged": {}}, tensors)


@pytest.fixture
def store(tmp_path):
    """Two checkpoints: of steps 3 and 6."""
    store = Store(tmp_path / "checkpoints")
    for step in (3, 6):
        store.write(made(step, value=float(step)), keep=2)
    return store


def test_what_is_written_is_read(store):
    assert store.steps() == [6, 3]
    assert sorted(f.name for f in store.path(6).iterdir()) == sorted(FILES)
    found = store.read(6)
    assert found.step == 6 and found.state == {"step": 6, "logged": {}}
    assert torch.equal(found.tensors["model"]["w"], torch.full((64,), 6.0))
    store.write(made(9), keep=2)
    assert store.steps() == [9, 6]
    store.write(made(12), keep=1)
    assert store.steps() == [12]
    store.remove()
    assert not store.folder.exists()


def damage(path, how, rng):
    """Spoil one file as disks, copies and people do."""
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "one bit":
        at = rng.randrange(len(content))
        path.write_bytes(
            content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
        )
    elif how == "another's":
        shutil.copyfile(path.parent.parent / "step-000003" / path.name, path)
    elif how == "a link":
        path.rename(path.parent.parent / "elsewhere")
        path.symlink_to(path.parent.parent / "elsewhere")
    else:
        path.write_bytes(content[: len(content) * how // 100])


@pytest.mark.parametrize("how", [0, 50, 99, "one bit", "gone", "another's", "a link"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_noticed(store, name, how):
    if name == "optimizer.safetensors" and how == "another's":
        pytest.skip("the two are the same")
    if (name, how) == (MANIFEST, "a link"):
        pytest.skip("what it lists is checked by content")
    damage(store.path(6) / name, how, random.Random(0))
    with pytest.raises(Damaged):
        store.read(6)
    assert store.read(3).step == 3


@pytest.mark.parametrize("bit", range(40))
def test_any_flipped_bit_of_the_manifest_or_the_weights_is_noticed(store, bit):
    for name in (MANIFEST, "model.safetensors", "state.json"):
        damage(store.path(6) / name, "one bit", random.Random(bit))
        with pytest.raises(Damaged):
            store.read(6)
        store.write(made(6, value=6.0), keep=2)  # a damaged one is replaced


def test_a_manifest_cannot_lead_elsewhere(store, tmp_path):
    """Whatever its checksums say: names in it are of files beside it."""
    save_file({"w": torch.ones(3)}, tmp_path / "mine.safetensors")
    manifest = read(store.path(6), MANIFEST)
    for name in ("../../mine.safetensors", str(tmp_path / "mine.safetensors")):
        manifest["files"][name] = {"bytes": 1, "sha256": ""}
        (store.path(6) / MANIFEST).write_text(json.dumps(manifest))
        with pytest.raises(Damaged, match="lists"):
            store.read(6)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("name", FILES)
def test_a_pickle_in_place_of_a_file_is_not_run(store, name, tmp_path, monkeypatch):
    """Even one whose checksum is right."""
    monkeypatch.chdir(tmp_path)
    torch.save(Bomb(), store.path(6) / name)
    if name != MANIFEST:
        from data.files import sha256

        file, manifest = store.path(6) / name, read(store.path(6), MANIFEST)
        manifest["files"][name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
        (store.path(6) / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(Damaged):
        store.read(6)
    assert not (tmp_path / "exploded").exists()


def test_a_failed_write_leaves_the_others_and_no_litter(store, monkeypatch):
    """The older ones are pruned only when the new one is there."""
    real = os.fsync
    for allowed in range(6):
        calls = []

        def full(descriptor, allowed=allowed, calls=calls):
            calls.append(1)
            if len(calls) > allowed:
                raise OSError(28, "No space left on device")
            real(descriptor)

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            store.write(made(9), keep=1)
        monkeypatch.undo()
        whole = [9] if allowed == 5 else []  # after its rename it is there
        assert store.steps() == [*whole, 6, 3]
        assert not list(store.folder.glob("*.partial"))
        assert store.read(6).step == 6


def test_a_folder_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "checkpoints").symlink_to(tmp_path / "elsewhere")
    store = Store(tmp_path / "checkpoints")
    with pytest.raises(OSError, match="is a link"):
        store.write(made(3), keep=1)
    store.remove()
    assert store.steps() == [] and list((tmp_path / "elsewhere").iterdir()) == []


def test_files_of_the_user_among_them_stay(store):
    (store.path(3) / "notes.txt").write_text("mine")
    store.write(made(9), keep=1)
    assert [f.name for f in store.path(3).iterdir()] == ["notes.txt"] and store.steps() == [9]
    store.remove()
    assert (store.path(3) / "notes.txt").exists()


# ---------------------------------------------------------------- in a run


def killed_at_8():
    import train

    real, calls = train.update, []

    def update(*given):
        calls.append(1)
        if len(calls) == 8:
            saves_are_done()
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given)

    train.update = update


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(data, the unbroken run)."""
    data = write_rows(tmp_path_factory.mktemp("data"), *pocket_rows(24, 8))
    out = tmp_path_factory.mktemp("whole") / "out"
    assert run(*FLAGS, "--data", data, "--output_dir", out).code == 0
    return data, out


@pytest.mark.parametrize("name", FILES)
def test_a_run_goes_on_from_the_one_before_a_damaged_one(whole, tmp_path, name):
    data, unbroken = whole
    flags = (*FLAGS, "--data", data, "--output_dir", tmp_path / "out")
    assert run(*flags, before=killed_at_8).code == -signal.SIGKILL
    newest = tmp_path / "out" / "checkpoints" / "step-000006"
    damage(newest / name, 50, random.Random(0))
    done = run(*flags)
    assert done.code == 0, done.err
    assert "checkpoint of step 6 left aside: " in done.out and name in done.out
    assert "goes on after step 3 of 9" in done.out
    assert weights(tmp_path / "out") == weights(unbroken)
    assert timeless(tmp_path / "out") == timeless(unbroken)


def test_metrics_that_were_cut_take_the_checkpoint_with_them(whole, tmp_path):
    """The disk lost the end of metrics.jsonl: the lines of steps 4 to 6 must be made again."""
    data, unbroken = whole
    flags = (*FLAGS, "--data", data, "--output_dir", tmp_path / "out")
    assert run(*flags, before=killed_at_8).code == -signal.SIGKILL
    lines = (tmp_path / "out" / "metrics.jsonl").read_text("utf-8").splitlines(keepends=True)
    (tmp_path / "out" / "metrics.jsonl").write_text("".join(lines[:5]), "utf-8")
    done = run(*flags)
    assert done.code == 0 and "left aside: metrics.jsonl or samples.jsonl ends before" in done.out
    assert timeless(tmp_path / "out") == timeless(unbroken)


def full_after_step_6():
    """No file may grow beyond a few bytes any more, once step 6 is saved."""
    import train

    real, calls = train.update, []

    def update(*given):
        calls.append(1)
        if len(calls) == 8:
            saves_are_done()
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        return real(*given)

    train.update = update


@pytest.mark.parametrize("keep", [1, 2])
def test_a_full_disk_loses_nothing(whole, tmp_path, keep):
    data, unbroken = whole
    out = tmp_path / "out"
    flags = (*FLAGS, "--data", data, "--output_dir", out, "--keep", keep)
    done = run(*flags, before=full_after_step_6)
    assert done.code == errors.IO_ERROR
    assert "the checkpoint of step 6 is good: the same command goes on from there" in done.line
    assert f"python train.py --export {out} makes a model of it" in done.line
    assert done.line == read(out, "status.json")["reason"]

    exported = run("--export", out)
    assert exported.code == 0, exported.err
    assert "the model after step 6" in exported.out
    assert (out / "export" / "config.json").exists() and not (out / "final").exists()

    assert run(*flags).code == 0
    assert weights(out) == weights(unbroken) and timeless(out) == timeless(unbroken)
    assert (out / "export" / "model.safetensors").read_bytes() != weights(out)


def test_a_checkpoint_is_exported_from_anywhere(whole, tmp_path):
    """Relative paths of the run's command begin where it was started."""
    here, other = tmp_path / "here", tmp_path / "other"
    other.mkdir()
    shutil.copytree(whole[0], here / "data")
    copy_base(here / "model")
    flags = (*FLAGS, "--data", "data", "--model", "model", "--output_dir", "out", "--keep", 1)
    assert run(*flags, cwd=here, before=full_after_step_6).code == errors.IO_ERROR
    exported = run("--export", "../here/out", cwd=other)
    assert exported.code == 0, exported.err
    assert (here / "out" / "export" / "model.safetensors").exists() and not list(other.iterdir())
    assert run(*flags, cwd=here).code == 0
    line = run("--export", here / "out").line
    assert line == f"--export {here}/out: the run is finished; its model is in final/"
