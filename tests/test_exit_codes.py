"""Every exit code: documented, what the process ends with, and what status.json keeps."""

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from runs import QUICK, ROOT, copy_base, pocket_rows, read, run, write_rows

from data import errors

CODES = {name: value for name, value in vars(errors).items() if type(value) is int}
del CODES["LONGEST"]


def test_the_table_has_all_codes_and_no_other():
    table = (
        (ROOT / "CONTRIBUTING.md").read_text("utf-8").split("## Exit codes")[1].split("\n## ")[0]
    )
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.M)} == {0, *CODES.values()}
    assert len(set(CODES.values())) == len(CODES)


def fail_with(make):
    """From now on an update ends in this error."""
    import train

    def update(*_):
        raise make()

    train.update = update


def out_of_memory():
    import train

    def short(*_):
        raise MemoryError

    train.step_gradient = short


def disk_full():
    fail_with(lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


def terminated():
    import train

    real = train.update

    def update(*given):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*given)

    train.update = update


def never_finite():
    import train

    train.not_finite = lambda metrics: "loss nan"


def broken():
    fail_with(lambda: ZeroDivisionError("a defect"))


def bad_row(folder):
    (folder / "bad.jsonl").write_text('{"prompt": "a"}\n', "utf-8")
    return ("--data", folder / "bad.jsonl")


def pickled(folder):
    model = copy_base(folder / "pickled")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    return ("--model", model)


# code: (flags, or what makes them in a folder; what is called in the process)
ENDS = {
    0: ((), None),
    1: ((), broken),
    errors.USAGE: (("--batch_size", 100_000), None),
    errors.BAD_DATA: (bad_row, None),
    errors.NO_INPUT: (("--data", "nowhere.jsonl"), None),
    errors.UNAVAILABLE: (("--data", "org/nowhere"), None),
    errors.NO_MEMORY: ((), out_of_memory),
    errors.IO_ERROR: ((), disk_full),
    errors.INTERRUPTED: ((), terminated),
    errors.NOT_FINITE: ((), never_finite),
    errors.UNSAFE: (pickled, None),
}


def test_no_code_is_left_out():
    """CANNOT_CREATE is below; for LOST it takes two processes: tests/test_peers.py."""
    elsewhere = {errors.CANNOT_CREATE, errors.LOST}
    assert ENDS.keys() | elsewhere == {0, 1, *CODES.values()}
    assert "errors.LOST" in Path(__file__).with_name("test_peers.py").read_text("utf-8")


@pytest.mark.parametrize("code", ENDS)
def test_a_run_ends_with_its_code_and_status_json_says_so(tmp_path, code):
    flags, before = ENDS[code]
    flags = flags(tmp_path) if callable(flags) else flags
    data, out = write_rows(tmp_path / "data", *pocket_rows(24, 8)), tmp_path / "out"
    given = ("--loss", "dpo", "--data", data, "--output_dir", out, *QUICK, *flags)
    done = run(*given, before=before, cwd=tmp_path)
    status = read(out, "status.json")
    state = "stopped" if code == errors.INTERRUPTED else "failed" if code else "finished"
    assert (done.code, status["exit_code"], status["state"]) == (code, code, state), done.err
    if code == 1:
        assert "Traceback" in done.err and status["reason"].startswith(
            "ZeroDivisionError: a defect"
        )
    elif code:
        assert done.line == status["reason"]


def test_a_directory_that_is_no_runs_is_left_as_it_is(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine", "utf-8")
    done = run("--loss", "dpo", "--output_dir", tmp_path, *QUICK)
    assert done.code == errors.CANNOT_CREATE and done.line
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("whole, ended_with, code", [
    (True, 0, 0), (True, 76, 76), (False, 0, -signal.SIGTERM),
])  # fmt: skip
def test_a_signal_after_the_end_changes_no_exit_code(whole, ended_with, code):
    """A run that is finished has not failed because its process took a moment to leave."""
    lines = (
        "import os, signal",
        "from runtime.process.signals import SIGNALLED",
        f"SIGNALLED.listen(to_the_end={whole})",
        f"SIGNALLED.close({ended_with})",
        "os.kill(os.getpid(), signal.SIGTERM)",
        "raise SystemExit(9)",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=ROOT, timeout=60)
    assert done.returncode == code
