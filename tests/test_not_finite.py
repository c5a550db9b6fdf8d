"""Steps whose loss or gradient is not finite: skipped, and the run ends at the third in a row."""

from types import SimpleNamespace

import pytest
import torch
from runs import metrics, pocket_rows, read, run, write_rows

import train
from data import errors
from runtime.config import TrainConfig
from runtime.state import TrainState

NAN, INFINITY = float("nan"), float("inf")


def spoil(*steps, loss=None, gradient=None):
    """Put a number that is not finite into the loss or the gradient of these steps."""
    real, done = train.optimizer_step, []

    def step(accelerator, policy, *rest):
        units, found = real(accelerator, policy, *rest)
        done.append(1)
        if len(done) in steps:
            if gradient is not None:
                next(policy.parameters()).grad[0] = gradient
            if loss is not None:
                found["loss"] = loss
        return units, found

    train.optimizer_step = step


def two_bad_then_one_good():
    spoil(1, 5, gradient=NAN)
    spoil(2, loss=NAN)
    spoil(4, loss=INFINITY)


def three_bad():
    spoil(2, 3, gradient=INFINITY)
    spoil(4, loss=NAN)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Up to six steps of SFT, the held-out rows evaluated after each."""
    folder = tmp_path_factory.mktemp("not_finite")
    data, out = write_rows(folder / "data", *pocket_rows(12, 4)), folder / "out"

    def go(before):
        flags = ["--data", data, "--output_dir", out, "--overwrite", "--eval_every", 1]
        flags += ["--max_steps", 6, "--batch_size", 4, "--learning_rate", 1e-3]
        return run("--loss", "sft", *flags, before=before), out

    return go


def test_a_good_step_starts_the_count_again(start):
    """Four of six steps are skipped, two at a time, and the run ends as any other."""
    done, out = start(two_bad_then_one_good)
    assert done.code == 0 and done.err == "", done.err
    steps, heldout = metrics(out)
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    losses = [row["eval/loss"] for row in heldout]
    changed = [after != before for before, after in zip(losses, losses[1:], strict=False)]
    assert changed == [False, False, True, False, False, True]


def test_the_third_in_a_row_ends_the_run(start):
    done, out = start(three_bad)
    assert done.code == errors.NOT_FINITE
    assert done.line.startswith("loss or gradient not finite for 3 steps, the last one step 4;")
    assert [row["step"] for row in metrics(out)[0]] == [1, 2, 3]
    assert read(out, "status.json")["state"] == "failed" and not (out / "final").exists()


# ---------------------------------------------------------------- one update


class Optimizer:
    def __init__(self):
        self.calls = []

    def step(self):
        self.calls.append("step")

    def zero_grad(self):
        self.calls.append("zero_grad")


def update(grad_norm, loss, state=None, **flags):
    """(norm returned, calls of the optimizer, limit of the clipping)."""
    limits, optimizer = [], Optimizer()
    module = torch.nn.Linear(2, 1)

    def clip(parameters, limit):
        assert [id(p) for p in parameters] == [id(p) for p in module.parameters()]
        limits.append(limit)
        return torch.tensor(grad_norm)

    accelerator = SimpleNamespace(clip_grad_norm_=clip)
    config = TrainConfig(loss="sft", **flags)
    state = state or TrainState(step=7)
    found = train.update(accelerator, module, optimizer, loss, state, config)
    assert type(found) is float
    return found, optimizer.calls, limits[0]


@pytest.mark.parametrize("given, limit", [(0.5, 0.5), (1.0, 1.0), (0, INFINITY)])
def test_a_good_step_is_clipped_and_taken(given, limit):
    assert update(2.0, 1.0, max_grad_norm=given) == (2.0, ["step", "zero_grad"], limit)


@pytest.mark.parametrize("grad_norm, loss", [(NAN, 1.0), (2.0, INFINITY), (INFINITY, NAN)])
def test_a_step_that_is_not_finite_is_left_out(grad_norm, loss):
    """Not with fp16, whose scaler does that by itself and lowers its scale."""
    assert update(grad_norm, loss)[1] == ["zero_grad"]
    assert update(grad_norm, loss, mixed_precision="bf16")[1] == ["zero_grad"]
    assert update(grad_norm, loss, mixed_precision="fp16")[1] == ["step", "zero_grad"]


def test_three_in_a_row_end_the_run():
    state = TrainState(step=7)
    update(NAN, 1.0, state)
    update(1.0, NAN, state)
    assert state.bad_steps == 2
    update(1.0, 1.0, state)
    assert state.bad_steps == 0
    for _ in range(2):
        update(NAN, 1.0, state)
    message = (
        "loss or gradient not finite for 3 steps, the last one step 7; the weights are as"
        " before them; try a lower --learning_rate"
    )
    with pytest.raises(errors.InputError, match=f"^{message}$") as error:
        update(NAN, 1.0, state)
    assert error.value.exit_code == errors.NOT_FINITE


def test_fp16_may_skip_as_often_as_its_scaler_needs():
    state = TrainState(step=7)
    for _ in range(5):
        update(NAN, 1.0, state, mixed_precision="fp16")
    assert state.bad_steps == 5
