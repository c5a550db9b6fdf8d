"""Two ranks: whatever ends one ends both, soon, saved, and with the first cause told."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from ranks import TORCHRUN, end, finish, gone, wait_for
from runs import OFFLINE, metrics, pocket_rows, read, run, timeless, weights, write_rows
from safetensors.torch import load_file
from tolerances import TIGHT

from data import errors

SCRIPT = Path(__file__).parent / "rank_train.py"
FLAGS = ("--loss", "dpo", "--max_steps", 6, "--batch_size", 8, "--learning_rate", 1e-3)
TWO = {"ACCELERATE_USE_CPU": "true"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("data"), *pocket_rows(24, 8))


@pytest.mark.parametrize(
    "how, code, told",
    [
        ("killed", errors.LOST, "process 1 of 2 (counted from 0) ended without a word: killed"),
        pytest.param(
            *("stands still", errors.LOST),
            "process 1 of 2 (counted from 0) has not answered for 5 s",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("first killed", errors.LOST),
            "process 0 of 2 (counted from 0) ended without a word: killed",
            marks=pytest.mark.slow,
        ),
        ("fails", 1, "process 1: ValueError: this reward wants no more"),
    ],
)
def test_the_first_cause_is_told_and_the_last_step_is_saved(data, tmp_path, how, code, told):
    out = tmp_path / "out"
    flags = (*FLAGS, "--data", data, "--output_dir", out)
    began = time.monotonic()
    done = finish([*TORCHRUN, SCRIPT, how, 4, *flags], timeout=120, **TWO)
    assert done.returncode != 0 and time.monotonic() - began < 90
    lines = [line for line in done.stderr.splitlines() if line.startswith("train.py: ")]
    assert len(lines) == 1 and lines[0].startswith(f"train.py: {told}"), done.stderr
    saved = "saved after step 3; the same command goes on from there"
    if how == "first killed":  # it is the one that saves
        saved = "the same command goes on from the newest checkpoint"
    assert lines[0].endswith(f"; {saved}")
    status = read(out, "status.json")
    assert (status["state"], status["exit_code"]) == ("failed", code)
    assert f"train.py: {status['reason']}" == lines[0]


@pytest.fixture
def launched(data, tmp_path):
    """(torchrun, its ranks, the run directory) of a run whose steps take half a second."""
    out = tmp_path / "out"
    flags = (*FLAGS[:2], "--max_steps", 40, *FLAGS[4:], "--data", data, "--output_dir", out)
    launcher = subprocess.Popen(
        [str(part) for part in (*TORCHRUN, SCRIPT, "waits", 0, *flags)],
        env=os.environ | OFFLINE | TWO,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: metrics(out)[0])
    yield launcher, psutil.Process(launcher.pid).children(recursive=True), out
    end(launcher)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a process of its parent's death")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_ranks_end_with_their_launcher_and_save(launched, name):
    launcher, ranks, out = launched
    began = time.monotonic()
    launcher.send_signal(getattr(signal, name))
    wait_for(lambda: all(map(gone, ranks)), 40)
    assert time.monotonic() - began < 20
    status = read(out, "status.json")
    assert (status["state"], status["exit_code"]) == ("stopped", errors.INTERRUPTED)
    assert status["reason"].startswith("stopped by SIGTERM; saved after step ")


def stopped_at(step):
    import train

    real, calls = train.update, []

    def update(*given):
        calls.append(1)
        if len(calls) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*given)

    train.update = update


def stopped_at_2():
    stopped_at(2)


@pytest.mark.parametrize("loss", ["dpo", pytest.param("ppo", marks=pytest.mark.slow)])
def test_a_run_goes_on_with_another_number_of_processes(data, tmp_path, loss):
    """One process for two steps, two for two, one to the end: the same run in float64."""
    source = ("--data", data) if loss == "dpo" else ("--rollout_size", 16, "--ppo_epochs", 2)
    flags = (*FLAGS[2:], "--loss", loss, *source, "--dtype", "float64")
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run(*flags, "--output_dir", whole).code == 0
    flags = (*flags, "--output_dir", out)
    assert run(*flags, before=stopped_at_2).code == errors.INTERRUPTED
    # Rank 1 fails at its third step: two were made.
    done = finish([*TORCHRUN, SCRIPT, "fails", 3, *flags], timeout=120, **TWO)
    assert done.returncode != 0 and "goes on after step 2 of 6" in done.stdout, done.stderr
    assert "changed since the run began: processes 1 -> 2" in done.stdout
    done = run(*flags)
    assert done.code == 0 and "goes on after step 4 of 6" in done.out, done.err
    assert [row["step"] for row in metrics(out)[0]] == [1, 2, 3, 4, 5, 6]
    pairs = [load_file(folder / "final" / "model.safetensors") for folder in (whole, out)]
    for name, expected in pairs[0].items():
        torch.testing.assert_close(pairs[1][name], expected, rtol=100 * TIGHT, atol=100 * TIGHT)


@pytest.mark.slow
def test_two_ranks_go_on_to_the_same_bits(data, tmp_path):
    flags = (*FLAGS, "--data", data, "--save_every", 2)
    whole, out = tmp_path / "whole", tmp_path / "out"
    for folder, how in ((whole, ("fails", 100)), (out, ("killed", 4)), (out, ("fails", 100))):
        command = [*TORCHRUN, SCRIPT, *how, *flags, "--output_dir", folder]
        done = finish(command, timeout=120, **TWO)
        assert (done.returncode == 0) == (how[0] == "fails"), done.stderr
    assert weights(out) == weights(whole) and timeless(out) == timeless(whole)
