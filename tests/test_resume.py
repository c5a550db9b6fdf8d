"""A run that ended early: its own command goes on, another one is refused, and nothing is lost."""

import os
import random
import shutil
import signal

import pytest
import torch
from runs import (
    BASE,
    metrics,
    pocket_rows,
    read,
    run,
    saves_are_done,
    timeless,
    weights,
    write_rows,
)

from data import errors
from runtime.process.signals import SIGNALS

FLAGS = ("--max_steps", 6, "--batch_size", 8, "--learning_rate", 1e-3)
PPO = ("--max_steps", 6, "--batch_size", 8, "--rollout_size", 16, "--ppo_epochs", 2)


def at_step(number, action, *, when="update"):
    """Do something before the `number`-th call of train.update, or of another function there."""
    import train

    real, calls = getattr(train, when), []

    def call(*given, **named):
        calls.append(1)
        if len(calls) == number:
            action()
        return real(*given, **named)

    setattr(train, when, call)


def killed():
    at_step(5, lambda: os.kill(os.getpid(), signal.SIGKILL))


def stopped():
    at_step(4, lambda: os.kill(os.getpid(), signal.SIGTERM))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("data"), *pocket_rows(24, 8))


@pytest.fixture(scope="module")
def dpo(data, tmp_path_factory):
    """The flags of a run, and the directory where it was stopped after step 4."""
    out = tmp_path_factory.mktemp("stopped") / "out"
    flags = ("--loss", "dpo", "--data", data, "--output_dir", out, *FLAGS)
    done = run(*flags, before=stopped)
    assert done.code == errors.INTERRUPTED
    said = "stopped by SIGTERM; saved after step 4; the same command goes on from there"
    assert done.line == said
    status = read(out, "status.json")
    assert (status["state"], status["exit_code"]) == ("stopped", errors.INTERRUPTED)
    assert status["reason"] == done.line
    return flags, out


@pytest.fixture
def copy(dpo, tmp_path):
    """The stopped run where a test may change it: (flags, directory)."""
    flags, out = dpo
    here = shutil.copytree(out, tmp_path / "out")
    return tuple(here if flag == out else flag for flag in flags), here


@pytest.fixture(scope="module")
def whole(dpo, tmp_path_factory):
    """The unbroken run."""
    flags, out = dpo
    here = tmp_path_factory.mktemp("whole") / "out"
    assert run(*[here if flag == out else flag for flag in flags]).code == 0
    return here


@pytest.mark.parametrize("flag", [(), ("--resume",)])
def test_its_own_command_goes_on(copy, whole, flag):
    flags, out = copy
    done = run(*flags, *flag)
    assert done.code == 0 and done.err == "", done.err
    (said,) = (line for line in done.out.splitlines() if line.startswith("goes on"))
    assert said.startswith("goes on after step 4 of 6 (stopped: stopped by SIGTERM; saved after")
    assert weights(out) == weights(whole) and timeless(out) == timeless(whole)
    assert not (out / "checkpoints").exists()  # nobody asked for them
    again = run(*flags)
    assert again.code == errors.CANNOT_CREATE and "holds a finished run" in again.line


def test_overwrite_begins_anew(copy, whole):
    flags, out = copy
    done = run(*flags, "--overwrite")
    assert done.code == 0 and "goes on" not in done.out
    assert weights(out) == weights(whole) and timeless(out) == timeless(whole)


def test_resume_needs_something_to_go_on_with(data, tmp_path):
    flags = ("--loss", "sft", "--data", data, "--output_dir", tmp_path / "out", *FLAGS)
    done = run(*flags, "--resume")
    assert done.code == errors.NO_INPUT and done.line.startswith("--resume: ")
    assert done.line.endswith("has no checkpoint")
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    "flags, named",
    [
        (("--beta", 0.2), "beta 0.1 -> 0.2"),
        (("--learning_rate", 2e-3), "learning_rate 0.001 -> 0.002"),
        (("--seed", 1), "seed 0 -> 1"),
        (("--max_steps", 7), "max_steps 6 -> 7"),
        (("--max_grad_norm", 2), "max_grad_norm 1.0 -> 2.0"),
    ],
)
def test_another_flag_is_refused_by_name_and_let_through_on_request(copy, flags, named):
    given, out = copy
    before = {f: f.read_bytes() for f in out.rglob("*") if f.is_file()}
    done = run(*given, *flags)
    assert done.code == errors.USAGE and f"other settings: {named}. " in done.line
    key = named.split()[0]
    assert f"--allow_changed {key}, or start anew with --overwrite" in done.line
    assert {f: f.read_bytes() for f in out.rglob("*") if f.is_file()} == before
    if key == "learning_rate":
        assert run(*given, *flags, "--allow_changed", "seed").code == errors.USAGE
        done = run(*given, *flags, "--allow_changed", f"seed,{key}")
        assert done.code == 0 and f"changed since the run began: {named}" in done.out


@pytest.mark.parametrize("what", ["data", "model"])
def test_other_files_under_the_same_name_are_refused(data, tmp_path, what):
    """One letter of one row; one number of one weight."""
    here, model = shutil.copytree(data, tmp_path / "data"), shutil.copytree(BASE, tmp_path / "base")
    flags = ("--loss", "sft", "--data", here, "--model", model, *FLAGS)
    flags = (*flags, "--output_dir", tmp_path / "out")
    assert run(*flags, before=stopped).code == errors.INTERRUPTED
    if what == "data":
        rows = (here / "train.jsonl").read_text("utf-8").splitlines()
        rows[3] = rows[3].replace("chosen", "\u0063hosen").replace('": "', '": "x', 1)
        (here / "train.jsonl").write_text("\n".join(rows), "utf-8")
    else:
        file = model / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    done = run(*flags)
    assert done.code == errors.USAGE and f"other settings: {what} " in done.line
    assert run(*flags, "--allow_changed", what).code == 0


@pytest.mark.parametrize("loss", ["sft", "reward", "orpo", "ppo"])
def test_what_is_kept_and_shown_changes_no_bit(data, tmp_path, loss):
    """Checkpoints, evaluation, the best model: the same weights, and the same lines of steps."""
    source = PPO if loss == "ppo" else ("--data", data, *FLAGS)
    found = []
    for number, more in enumerate(
        [
            (),
            (),
            ("--save_every", 1, "--keep", 1),
            ("--eval_every", 2, "--keep_best", "loss" if loss != "ppo" else "reward"),
        ]
    ):
        out = tmp_path / str(number)
        done = run("--loss", loss, "--output_dir", out, *source, *more)
        assert done.code == 0, done.err
        steps = [{k: v for k, v in row.items() if k != "seconds"} for row in metrics(out)[0]]
        found.append((weights(out), steps))
    assert all(one == found[0] for one in found)
    assert (tmp_path / "3" / "best" / "config.json").exists()
    if loss == "ppo":
        from models.load import load_critic

        critic = load_critic(str(tmp_path / "0" / "critic"), dtype="float32")
        assert torch.isfinite(critic.score.weight).all() and critic.score.weight.abs().max() > 0


@pytest.mark.parametrize("name", sorted(s.name for s in SIGNALS))
def test_every_signal_that_asks_to_stop_is_obeyed(data, tmp_path, name):
    flags = ("--loss", "sft", "--data", data, "--output_dir", tmp_path / "out", *FLAGS)
    done = run(*flags, before=signalled, env={"STOP_BY": name})
    assert done.code == errors.INTERRUPTED
    assert done.line.startswith(f"stopped by {name}; saved after step 4")


def signalled():
    number = getattr(signal, os.environ["STOP_BY"])
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup would have it ignored, and that is kept
    at_step(4, lambda: os.kill(os.getpid(), number))


def test_a_signal_while_models_load_ends_the_run_at_once(data, tmp_path):
    out = tmp_path / "out"
    flags = ("--loss", "sft", "--data", data, "--output_dir", out, *FLAGS)
    done = run(*flags, before=signalled_early)
    assert (done.code, done.line) == (errors.INTERRUPTED, "stopped by SIGTERM")
    assert read(out, "status.json")["state"] == "stopped"
    assert run(*flags).code == 0


def signalled_early():
    at_step(1, lambda: os.kill(os.getpid(), signal.SIGTERM), when="make_optimizer")


def test_a_step_that_takes_too_long_is_given_up(data, tmp_path):
    """A launcher kills 30 seconds after its signal."""
    out = tmp_path / "out"
    flags = ("--loss", "sft", "--data", data, "--output_dir", out, *FLAGS)
    done = run(*flags, before=slow_step)
    assert done.code == errors.INTERRUPTED
    assert done.line.startswith("stopped by SIGTERM; saved after step 3")
    assert run(*flags).code == 0
    assert [row["step"] for row in metrics(out)[0]] == [1, 2, 3, 4, 5, 6]


def slow_step():
    import time

    from runtime.process import signals

    signals.PATIENCE = 0.3

    def wait():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)

    at_step(4, wait, when="step_gradient")


def test_a_second_signal_ends_the_process_at_once(data, tmp_path):
    out = tmp_path / "out"
    flags = ("--loss", "sft", "--data", data, "--output_dir", out, *FLAGS)
    done = run(*flags, before=impatient)
    assert (done.code, done.line) == (
        errors.INTERRUPTED,
        "a second signal (SIGTERM): ended at once",
    )
    assert run(*flags).code == 0  # what it left is no obstacle


def impatient():
    import time

    def twice():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.7)
        os.kill(os.getpid(), signal.SIGTERM)

    at_step(4, twice)


def test_sys_exit_in_the_middle_is_no_success(data, tmp_path):
    out = tmp_path / "out"
    flags = ("--loss", "sft", "--data", data, "--output_dir", out, *FLAGS)
    done = run(*flags, before=leaves)
    assert done.code == 1
    assert done.line.startswith("sys.exit(0) was called, by a reward function perhaps; saved after")
    assert read(out, "status.json")["state"] == "failed"


def leaves():
    def leave():
        raise SystemExit(0)

    at_step(4, leave, when="step_gradient")


def test_the_spike_guard_remembers(data, tmp_path):
    """Its window is in the checkpoint: 70 steps, a kill, a jump at step 74 that is seen."""
    flags = ("--loss", "sft", "--data", data, "--batch_size", 2, "--max_steps", 76)
    flags = (*flags, "--learning_rate", 1e-4, "--spike_guard", 6, "--save_every", 70)
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run(*flags, "--output_dir", whole, before=jump).code == 0
    assert run(*flags, "--output_dir", out, before=killed_at_72).code == -signal.SIGKILL
    done = run(*flags, "--output_dir", out, before=jump_after_70)
    assert done.code == 0 and "step 74 skipped: loss 1e+06" in done.out
    assert weights(out) == weights(whole)
    assert read(out, "summary.json")["skipped_steps"] == 1


def jump(number=74):
    import train

    real, calls = train.optimizer_step, []

    def step(*given):
        units, found = real(*given)
        calls.append(1)
        return units, found | ({"loss": 1e6} if len(calls) == number else {})

    train.optimizer_step = step


def jump_after_70():
    jump(4)


def killed_at_72():
    def kill():
        saves_are_done()
        os.kill(os.getpid(), signal.SIGKILL)

    at_step(72, kill)


def out_of_memory():
    """There is room for 100 tokens at once."""
    import torch

    import train

    real = train.optimizer_step

    def step(accelerator, policy, loss, config, batches):
        if max(int((batch.example >= 0).sum()) for batch in batches) > 100:
            real(accelerator, policy, loss, config, batches[:1])  # some of the gradient
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
        return real(accelerator, policy, loss, config, batches)

    train.optimizer_step = step


def test_out_of_memory_halves_the_micro_batch_and_changes_nothing_else(data, tmp_path):
    flags = ("--loss", "dpo", "--data", data, *FLAGS, "--dtype", "float64")
    small, out = tmp_path / "small", tmp_path / "out"
    assert run(*flags, "--output_dir", small, "--max_tokens", 64).code == 0
    done = run(*flags, "--output_dir", out, "--max_tokens", 256, before=out_of_memory)
    assert done.code == 0, done.err
    said = [line for line in done.out.splitlines() if line.startswith("out of memory")]
    assert [line.split(";")[0] for line in said] == [
        "out of memory with 256 tokens a forward",
        "out of memory with 128 tokens a forward",
    ]
    assert weights(out) == weights(small)


def test_random_kills_come_to_the_same_end(data, tmp_path):
    """As people and clusters do it: at any moment, again and again."""
    flags = ("--loss", "sft", "--data", data, *FLAGS, "--save_every", 2)
    whole, out, rng = tmp_path / "whole", tmp_path / "out", random.Random(0)
    assert run(*flags, "--output_dir", whole).code == 0
    for _ in range(4):
        env = {"DIE_AFTER": str(rng.uniform(0.0, 1.5))}
        done = run(*flags, "--output_dir", out, before=mortal, env=env)
        assert done.code in (0, -signal.SIGKILL, errors.CANNOT_CREATE)
    assert run(*flags, "--output_dir", out).code in (0, errors.CANNOT_CREATE)
    assert weights(out) == weights(whole) and timeless(out) == timeless(whole)


def mortal():
    """Seconds of computing, so that a busy machine kills at the same places."""
    signal.signal(signal.SIGVTALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    signal.setitimer(signal.ITIMER_VIRTUAL, 1e-3 + float(os.environ["DIE_AFTER"]))
