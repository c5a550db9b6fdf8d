"""The program as a process: from any directory, without a network, under every launcher."""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress

import psutil
import pytest
import torch
from ranks import TORCHRUN, finish, gone, wait_for
from runs import (
    OFFLINE,
    QUICK,
    ROOT,
    last_of_each,
    metrics,
    no_model,
    pocket_rows,
    read,
    run,
    write_rows,
)
from tolerances import loose

from data import errors

TRAIN_PY = str(ROOT / "train.py")
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]
cpu_only = pytest.mark.skipif(torch.cuda.is_available(), reason="launchers behave so without a GPU")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("data"), *pocket_rows())


# ---------------------------------------------------------------- the two commands of the README


def test_it_runs_from_any_directory_without_a_network(tmp_path):
    """The whole default run but for its length; whoever opens a connection is stopped."""
    (tmp_path / "sitecustomize.py").write_text(
        "import socket\n"
        "def refuse(*args, **options):\n"
        "    raise SystemExit(f'network: {args}')\n"
        "socket.getaddrinfo = refuse\n"
        "socket.socket.connect = refuse\n"
    )
    cwd = tmp_path / "elsewhere"
    cwd.mkdir()
    done = finish(
        [sys.executable, TRAIN_PY, "--loss", "sft", "--max_steps", "2"],
        cwd=cwd,
        PYTHONPATH=str(tmp_path),
        HF_HUB_OFFLINE=None,
    )
    assert done.returncode == 0 and "network" not in done.stderr, done.stderr
    assert read(cwd / "runs" / "sft", "status.json")["state"] == "finished"
    assert (cwd / "runs" / "sft" / "curves.png").stat().st_size > 10_000


def test_accelerate_launch_trains(tmp_path):
    flags = ["--loss", "dpo", "--max_steps", 2, "--output_dir", tmp_path / "out"]
    done = finish([*ACCELERATE, "train.py", *flags])
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "out", "config.json")["origin"]["learning_rate"] == "default for pocket"
    assert read(tmp_path / "out", "summary.json")["rows"] == 64


def test_a_typo_ends_the_process_with_one_line_and_the_exit_code():
    done = finish([sys.executable, TRAIN_PY, "--loss", "dpo", "--max_step", 3])
    assert done.returncode == errors.USAGE
    assert done.stderr == "train.py: unknown flag --max_step: did you mean --max_steps?\n"


# ---------------------------------------------------------------- several processes


@cpu_only
def test_two_processes_are_one_run(tmp_path, data):
    flags = last_of_each(["--loss", "dpo", "--data", data, *QUICK, "--batch_size", 3])
    one = run(*flags, "--output_dir", tmp_path / "one")
    assert one.code == 0, one.err
    flags += ["--output_dir", tmp_path / "two"]
    command = [*TORCHRUN, TRAIN_PY, *flags]
    two = finish(command, ACCELERATE_USE_CPU="true")
    assert two.returncode == 0, two.stderr
    assert "2 processes" in two.stdout and two.stdout.count("plan: ") == 1
    assert read(tmp_path / "two", "config.json")["processes"] == 2
    assert same(tmp_path / "two", tmp_path / "one")


def same(out, other):
    """The first step and the rows before it; later steps differ by what Adam makes of roundings."""
    bound = loose(torch.float32)
    (steps, heldout), (others, other_heldout) = metrics(out), metrics(other)
    for mine, theirs in ((steps[0], others[0]), (heldout[0], other_heldout[0])):
        theirs = {k: v for k, v in theirs.items() if k != "seconds"}
        assert {k: mine[k] for k in theirs} == pytest.approx(theirs, rel=bound, abs=bound)
    assert [r["loss"] for r in steps] == pytest.approx([r["loss"] for r in others], rel=1e-3)
    tokens = [read(folder, "summary.json")["tokens"] for folder in (out, other)]
    return len(steps) == len(others) and tokens[0] == tokens[1]


@cpu_only
@pytest.mark.parametrize("command", [
    [*TORCHRUN, TRAIN_PY],
    [*ACCELERATE, "--cpu", "--num_processes", 2, TRAIN_PY],
], ids=["torchrun", "accelerate launch --cpu"])  # fmt: skip
def test_a_launch_that_would_run_alone_stops_with_the_right_command(tmp_path, data, command):
    flags = ["--loss", "sft", "--data", data, *QUICK, "--output_dir", tmp_path / "out"]
    done = finish([*command, *flags], ACCELERATE_USE_CPU=None)
    assert done.returncode != 0
    assert done.stderr.count("\ntrain.py: ") + done.stderr.startswith("train.py: ") == 1
    assert "`ACCELERATE_USE_CPU=true torchrun --nproc_per_node N train.py ...`" in done.stderr
    assert not (tmp_path / "out").exists()


# what `accelerate launch` sets for each (accelerate.utils.launch)
@pytest.mark.parametrize("variable, name", [
    ("ACCELERATE_USE_FSDP", "FSDP"),
    ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"),
    ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"),
    ("ACCELERATE_USE_PARALLELISM_CONFIG", "a parallelism_config"),
])  # fmt: skip
def test_a_launch_that_cuts_the_model_is_refused_before_anything_is_loaded(
    tmp_path, variable, name
):
    flags = ["--loss", "sft", *QUICK, "--output_dir", tmp_path / "out"]
    done = run(*flags, env={variable: "true"}, before=no_model)
    assert done.code == errors.USAGE
    assert done.line.startswith(f"accelerate launch was given {name}, and here every process needs")
    assert "`accelerate launch --multi_gpu --num_processes N train.py ...` (DDP)" in done.line
    assert not (tmp_path / "out").exists()
    assert "plan: 3 optimizer steps" in run(*flags, "--dry_run", env={variable: "false"}).out


# ---------------------------------------------------------------- signals


@pytest.fixture
def launched(tmp_path, data):
    """`accelerate launch train.py` with days of work to do: (launcher, trainer, run directory)."""
    flags = last_of_each(["--loss", "sft", "--data", data, *QUICK, "--max_steps", 10**6])
    command = [*ACCELERATE, TRAIN_PY, *flags, "--output_dir", tmp_path / "out"]
    launcher = subprocess.Popen(
        [str(part) for part in command],
        env=os.environ | OFFLINE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    trainer = wait_for(lambda: psutil.Process(launcher.pid).children()[0])
    yield launcher, trainer, tmp_path / "out"
    launcher.kill()
    with suppress(psutil.NoSuchProcess):
        trainer.kill()
    launcher.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a process of its parent's death")
def test_the_trainer_ends_with_its_launcher_and_says_so(launched):
    launcher, trainer, out = launched
    wait_for(lambda: metrics(out)[0])
    launcher.send_signal(signal.SIGTERM)
    wait_for(lambda: gone(trainer), 30)
    status = read(out, "status.json")
    assert status["pid"] == trainer.pid
    assert status["state"] == "stopped"
    assert status["reason"].startswith("stopped by SIGTERM; saved after step ")
    assert status["exit_code"] == errors.INTERRUPTED


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a process of its parent's death")
def test_the_trainer_ends_with_its_launcher_while_it_is_still_importing(launched):
    launcher, trainer, out = launched
    wait_for(lambda: any("torch" in m.path for m in trainer.memory_maps()))
    launcher.send_signal(signal.SIGTERM)
    wait_for(lambda: gone(trainer), 30)
    assert not out.exists()


def test_the_lock_is_free_after_a_kill(tmp_path, data):
    """kill -9 gives no time to say anything; the next run says that this one did not finish."""
    out = tmp_path / "out"
    flags = ["--loss", "sft", "--data", data, "--output_dir", out, *QUICK]
    assert run(*flags, before=killed).code == -signal.SIGKILL
    assert read(out, "status.json")["state"] == "running"
    done = run(*flags)
    assert done.code == 0, done.err
    assert re.search(r"a run that saved nothing \(process \d+ ended without a word\)", done.out)


def killed():
    import train

    train.optimizer_step = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
