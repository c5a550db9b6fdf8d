"""How a run is started: what is asked of Accelerate, and the launches that are refused."""

import ctypes
import signal
import sys
from types import SimpleNamespace

import accelerate
import pytest
import torch
from accelerate.utils import LoggerType

from data.errors import USAGE, InputError
from runtime import launch
from runtime.config import TrainConfig
from runtime.guards.outputs import Trackers
from runtime.launch import check_launch, die_with_launcher, make_accelerator

LAUNCHERS = (
    *("ACCELERATE_MIXED_PRECISION", "WORLD_SIZE", "MASTER_PORT"),
    *launch.SHARDED,
)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def asked(monkeypatch):
    """What Accelerator is made with; TensorBoard alone is installed, on a machine with `device`."""
    options = {"device": "cpu"}

    def make(**given):
        options.update(given)
        return SimpleNamespace(device=torch.device(options["device"]))

    monkeypatch.setattr(accelerate, "Accelerator", make)
    installed = [LoggerType.TENSORBOARD]
    monkeypatch.setattr(accelerate.tracking, "get_available_trackers", lambda: installed)
    return options


def refused(**flags):
    with pytest.raises(InputError) as error:
        make_accelerator(TrainConfig(loss="sft", **flags))
    assert error.value.exit_code == USAGE
    return str(error.value)


def test_the_accelerator_has_the_flags_and_divides_no_gradient(asked):
    config = TrainConfig(loss="sft", mixed_precision="bf16", output_dir="there")
    assert make_accelerator(config).device.type == "cpu"
    plugin = asked.pop("gradient_accumulation_plugin")
    assert plugin.num_steps == 1
    flags = {"mixed_precision": "bf16", "log_with": None, "project_dir": "there"}
    assert asked == {"device": "cpu"} | flags


@pytest.mark.parametrize("given", ["tensorboard", "all", "tensorboard,all"])
def test_trackers_are_handed_on_by_name(asked, given):
    make_accelerator(TrainConfig(loss="sft", report_to=given))
    assert asked["log_with"] == given.split(",")


def test_a_tracker_that_there_is_not_is_refused(asked):
    said = refused(report_to="tensorboard,nonsense")
    known, *_ = said.removeprefix("--report_to nonsense: choose from ").split(", ")
    names = [tracker.value for tracker in LoggerType if tracker is not LoggerType.ALL]
    assert said == f"--report_to nonsense: choose from {', '.join(names)}" and known in names
    assert refused(report_to="wandb") == "--report_to wandb is not installed: pip install wandb"


@pytest.mark.parametrize("variable, name", launch.SHARDED.items())
def test_a_launch_that_cuts_the_model_is_refused(asked, monkeypatch, variable, name):
    monkeypatch.setenv(variable, "True")
    assert refused().startswith(f"accelerate launch was given {name}, and here every process")
    monkeypatch.setenv(variable, "false")
    make_accelerator(TrainConfig(loss="sft"))


def test_the_launcher_s_precision_is_refused_unless_it_is_the_run_s(asked, monkeypatch):
    for launched, flag in (("no", "bf16"), ("bf16", "bf16"), ("no", "no")):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
        make_accelerator(TrainConfig(loss="sft", mixed_precision=flag))
        assert asked["mixed_precision"] == flag
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    said = "accelerate launch was given bf16; give --mixed_precision bf16 to train.py too"
    assert refused() == said


def test_fp16_needs_a_gpu(asked):
    assert (
        refused(mixed_precision="fp16") == "--mixed_precision fp16 needs a GPU; on a CPU take bf16"
    )
    asked["device"] = "cuda"
    make_accelerator(TrainConfig(loss="sft", mixed_precision="fp16"))
    asked["device"] = "cpu"
    make_accelerator(TrainConfig(loss="sft", mixed_precision="bf16"))


# ---------------------------------------------------------------- several processes


@pytest.mark.parametrize(
    "environment, processes",
    [
        ({}, 1),
        ({"WORLD_SIZE": "1"}, 1),
        ({"WORLD_SIZE": "2"}, 2),
        ({"WORLD_SIZE": "2", "MASTER_PORT": "1"}, 2),
        ({"WORLD_SIZE": "1", "MASTER_PORT": "1"}, 1),
    ],
)
def test_processes_that_run_together_are_let(monkeypatch, environment, processes):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    check_launch(SimpleNamespace(num_processes=processes))


@pytest.mark.parametrize(
    "environment, message",
    [
        ({"WORLD_SIZE": "2"}, "2 processes were started, but each runs alone"),
        ({"MASTER_PORT": "1"}, "several processes were asked for and one was started"),
    ],
)
def test_a_process_that_would_run_alone_is_refused(monkeypatch, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"^{message}; on a machine without a GPU") as error:
        check_launch(SimpleNamespace(num_processes=1))
    assert error.value.exit_code == USAGE


def test_trackers_start_with_the_flags_that_have_a_value():
    """TensorBoard takes no None."""
    started = []
    accelerator = SimpleNamespace(init_trackers=lambda *given: started.append(given))
    Trackers(accelerator, TrainConfig(loss="sft")).start()
    assert started == []
    Trackers(accelerator, TrainConfig(loss="sft", report_to="tensorboard")).start()
    ((project, values),) = started
    assert project == "alignment-losses"
    assert values["report_to"] == "tensorboard" and values["eval_every"] == 0
    assert "eval_data" not in values


@pytest.mark.parametrize("broken", ["init_trackers", "log", "finish"])
def test_a_tracker_that_fails_is_said_once_and_ends_no_run(capsys, broken):
    calls = []

    def call(name):
        calls.append(name)
        if name == broken:
            raise ConnectionError("no route")

    names = ("init_trackers", "log", "finish", "end_training")
    calls_of = {n: lambda *_, n=n, **__: call(n) for n in names}
    accelerator = SimpleNamespace(**calls_of, trackers=[SimpleNamespace(**calls_of)])
    trackers = Trackers(accelerator, TrainConfig(loss="sft", report_to="wandb"))
    trackers.start()
    trackers.log({"loss": 1.0}, 1)
    trackers.log({"loss": 1.0}, 2)
    trackers.end()
    tried = {
        "init_trackers": ["init_trackers"],
        "log": ["init_trackers", "log"],
        "finish": ["init_trackers", "log", "log", "finish"],
    }
    assert calls == [*tried[broken], "end_training"]  # which ends the process group
    out, err = capsys.readouterr()
    assert out == "" and err.count("failed, and the run goes on: no route") == 1


@pytest.mark.parametrize(
    "platform, launcher, asks",
    [
        ("linux", "ACCELERATE_MIXED_PRECISION", True),
        ("linux", "TORCHELASTIC_RUN_ID", True),
        ("linux", None, False),
        ("darwin", "ACCELERATE_MIXED_PRECISION", False),
    ],
)
def test_under_a_launcher_linux_is_asked_for_a_signal_at_its_death(
    monkeypatch, platform, launcher, asks
):
    calls = []
    library = SimpleNamespace(prctl=lambda *given: calls.append(given))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library if name is None else None)
    monkeypatch.setattr(sys, "platform", platform)
    if launcher:
        monkeypatch.setenv(launcher, "no")
    die_with_launcher()
    assert calls == ([(1, signal.SIGTERM)] if asks else [])


@pytest.mark.parametrize("error", [OSError, AttributeError])
def test_a_linux_without_it_runs_all_the_same(monkeypatch, error):
    def fail(name):
        raise error

    monkeypatch.setattr(ctypes, "CDLL", fail)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    die_with_launcher()
