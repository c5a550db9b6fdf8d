"""--mixed_precision auto: by what the machine says of itself and a timing, decided once."""

import json
from typing import Any

import pytest
import torch
from runs import QUICK, metrics, run

import models.precision as precision
from models.precision import GAIN, Precision, choose_precision, has_bfloat16

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch):
    """A processor with the instructions that a test gives it, and a gain of 2."""
    found: dict[str, Any] = {"gain": 2.0, "timed": []}

    def gain(device, hidden_size):
        found["timed"].append(hidden_size)
        return found["gain"]

    monkeypatch.setattr(precision, "bfloat16_gain", gain)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found["reported"], raising=False)
    found["reported"] = {"avx512_bf16": True, "amx_bf16": False, "num_sockets": 1}
    return found


@pytest.mark.parametrize("reported", [{"avx512_bf16": True}, {"amx_bf16": True}, {"bf16": True}])
def test_bfloat16_where_the_processor_has_it_and_it_is_faster(machine, reported):
    machine["reported"] = reported | {"avx512_f": False}
    chosen = choose_precision(CPU, 576, "float32")
    assert chosen == ("bf16", "bfloat16 is 2.0 times as fast as float32 here")
    assert machine["timed"] == [576]


@pytest.mark.parametrize("gain", [GAIN - 0.01, 0.2])
def test_a_gain_that_casts_would_eat_is_none(machine, gain):
    machine["gain"] = gain
    chosen = choose_precision(CPU, 576, "float32")
    assert chosen == ("no", f"bfloat16 is {gain:.1f} times as fast as float32 here")


def test_nothing_is_timed_where_it_cannot_gain(machine):
    assert choose_precision(CPU, 64, "float32") == ("no", "the model is small")
    assert choose_precision(CPU, 576, "float64") == ("no", "--dtype float64")
    machine["reported"] = {"avx512_f": True, "avx512_bf16": False, "cpu_name": "bf16"}
    reason = "this cpu has no instructions for bfloat16"
    assert choose_precision(CPU, 576, "float32") == ("no", reason)
    assert choose_precision(torch.device("meta"), 576, "float32").name == "no"
    assert machine["timed"] == []


def test_a_torch_that_reports_nothing_is_timed(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert has_bfloat16(CPU)


def test_the_timing_is_of_both(monkeypatch):
    """Of a clock that gives every product in bfloat16 a second, and every other three."""
    now, narrow = [0.0], []
    real = precision.linear

    def linear(x, weight):
        narrow.append(torch.is_autocast_enabled("cpu"))
        now[0] += 1.0 if narrow[-1] else 3.0
        return real(x, weight)

    monkeypatch.setattr(precision, "linear", linear)
    monkeypatch.setattr(precision.time, "perf_counter", lambda: now[0])
    assert precision.bfloat16_gain(CPU, 8) == 3.0
    assert narrow.count(True) == narrow.count(False) == precision.ROUNDS + 1


# ---------------------------------------------------------------- a run


def narrow():
    precision.choose_precision = lambda *_: Precision("bf16", "so the test says")


def never():
    def choose(*_):
        raise AssertionError("timed again")

    precision.choose_precision = choose


def stopped():
    import train

    narrow()
    real, made = train.optimizer_step, []

    def step(*args):
        made.append(1)
        if len(made) > 2:
            raise KeyboardInterrupt
        return real(*args)

    train.optimizer_step = step


AUTO = ("--loss", "sft", "--mixed_precision", "auto", *QUICK)


def recorded(out):
    return json.loads((out / "config.json").read_text("utf-8"))["train"]["mixed_precision"]


def test_what_was_decided_is_said_recorded_and_done(tmp_path):
    done = run(*AUTO, "--output_dir", tmp_path / "auto", before=narrow)
    assert done.code == 0, done.err
    line = "precision: bfloat16 in the forward, float32 weights (so the test says)"
    assert done.out.splitlines()[0] == line and recorded(tmp_path / "auto") == "bf16"
    assert run(*AUTO, "--mixed_precision", "bf16", "--output_dir", tmp_path / "bf16").code == 0
    assert run(*AUTO, "--output_dir", tmp_path / "own").code == 0
    losses = [[r["loss"] for r in metrics(tmp_path / n)[0]] for n in ("auto", "bf16", "own")]
    assert losses[0] == losses[1] != losses[2]
    assert recorded(tmp_path / "own") == "no"  # pocket is small


def test_a_run_goes_on_in_the_precision_that_it_began_with(tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run(*AUTO, "--output_dir", whole, before=narrow).code == 0
    assert run(*AUTO, "--output_dir", out, before=stopped).code == 75
    done = run(*AUTO, "--output_dir", out, before=never)
    assert done.code == 0, done.err
    assert "(as the run began)" in done.out and recorded(out) == "bf16"
    assert [r["loss"] for r in metrics(out)[0]] == [r["loss"] for r in metrics(whole)[0]]
    assert run(*AUTO, "--output_dir", out, "--overwrite").code == 0  # another run: decided anew
    assert recorded(out) == "no"


def test_the_launcher_decides_where_it_was_told(tmp_path):
    env = {"ACCELERATE_MIXED_PRECISION": "bf16"}
    done = run(*AUTO, "--output_dir", tmp_path, env=env, before=never)
    assert done.code == 0 and "(as accelerate launch was told)" in done.out
    assert recorded(tmp_path) == "bf16"
