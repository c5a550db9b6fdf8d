"""--dry_run ends as the run itself would, and writes nothing."""

import json
import shutil

import pytest
from runs import BASE, QUICK, copy_base, no_model, pocket_rows, run, write_rows

from data import errors


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("data"), *pocket_rows(12, 4))


@pytest.fixture
def dry(data, tmp_path):
    """A dry run of DPO; nothing that it was given may change."""

    def go(*flags, loss="dpo", before=no_model):
        source = ("--data", data) if loss != "ppo" else ()
        given = (*source, "--output_dir", tmp_path / "out", *QUICK, *flags)
        files = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
        done = run("--loss", loss, "--dry_run", *given, before=before)
        assert {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()} == files
        return done

    return go


def test_it_says_how_much_room_the_run_needs(dry):
    """803k parameters: in float32, with two moments, in three checkpoints; and final/."""
    done = dry()
    assert done.code == 0, done.err
    (line,) = (line for line in done.out.splitlines() if line.startswith("disk: "))
    assert "0.0 GB on the disk at most (3 checkpoints of 0.0 GB, and the model); " in line


def small_disk():
    from types import SimpleNamespace

    from runtime.session import preflight

    no_model()
    # a byte short of 802,944 numbers of 4 bytes, three times in three checkpoints, once in final/
    usage = SimpleNamespace(free=802_944 * 4 * (3 * 3 + 1) - 1)
    preflight.shutil.disk_usage = lambda path: usage


def test_a_disk_that_is_too_small_is_refused(dry):
    done = dry(before=small_disk)
    assert done.code == errors.IO_ERROR and "and 0.0 GB are free; give another disk" in done.line
    assert dry("--keep", 1, before=small_disk).code == 0


@pytest.mark.parametrize("name", ["config.json", "notes.txt"])
def test_a_folder_that_is_no_run_s_is_refused(dry, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("{}")
    for more in ((), ("--overwrite",)):
        done = dry(*more)
        assert done.code == errors.CANNOT_CREATE and "is no run directory" in done.line


def test_a_file_in_the_way_is_refused(dry, tmp_path):
    (tmp_path / "out").write_text("")
    done = dry()
    assert done.code == errors.CANNOT_CREATE and "no directory; see --output_dir" in done.line


@pytest.mark.parametrize("loss, flag", [("dpo", "--model"), ("dpo", "--ref_model"),
                                        ("ppo", "--reward")])  # fmt: skip
def test_weights_that_are_cut_or_missing_are_refused(dry, tmp_path, loss, flag):
    model = copy_base(tmp_path / "model")
    weights = model / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:100])
    done = dry(flag, model, loss=loss)
    assert done.code == errors.BAD_DATA and done.line.startswith(f"{flag} {model}: ")
    weights.unlink()
    done = dry(flag, model, loss=loss)
    assert done.code == errors.BAD_DATA and "no safetensors files in this directory" in done.line


def test_a_warm_up_longer_than_the_run_is_refused(dry):
    done = dry("--warmup", 3)
    assert done.code == errors.USAGE
    assert done.line.startswith("--warmup 3 is no shorter than the run's 3 steps")
    assert dry("--warmup", 2).code == 0


def test_a_batch_larger_than_the_data_is_said(dry):
    assert "a step of 16 rows takes some of the 12 more than once" in dry("--batch_size", 16).out


@pytest.mark.parametrize("flag", ["--model", "--data", "--ref_model", "--eval_data"])
@pytest.mark.parametrize("below", [False, True])
def test_what_is_read_may_not_lie_where_is_written(dry, data, tmp_path, flag, below):
    """`--model ./m --output_dir ./m` would replace the model's own files."""
    out = tmp_path / "out"
    place = out / "part" if below else out
    if "model" in flag:
        shutil.copytree(BASE, place, copy_function=shutil.copyfile)
    else:
        shutil.copytree(data, place)
        place = place / "train.jsonl"
    (out / "run.json").write_text(json.dumps({"made_by": "alignment-losses", "files": []}))
    done = dry(flag, place)
    assert done.code == errors.USAGE, done
    assert done.line.startswith(f"{flag} {place} lies in --output_dir {out}, which is written")
    if flag == "--data":
        for pattern in (out / "*.jsonl", f"{place}=2,{data / 'valid.jsonl'}"):
            assert dry(flag, pattern).code == errors.USAGE
