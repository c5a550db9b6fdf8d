"""Steps whose loss or gradient is not finite, or jumps: skipped, said by their rows, counted."""

from types import SimpleNamespace

import pytest
import torch
from runs import metrics, pocket_rows, read, run, write_rows
from tolerances import LOOSE

import train
from data import errors
from runtime.config import TrainConfig
from runtime.guards import finite
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


@pytest.fixture
def start(tmp_path):
    """Up to six steps of SFT, the held-out rows evaluated after each."""
    data, out = write_rows(tmp_path / "data", *pocket_rows(12, 4)), tmp_path / "out"

    def go(before):
        flags = ["--data", data, "--output_dir", out, "--eval_every", 1]
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
    assert read(out, "summary.json")["skipped_steps"] == 4
    said = [line for line in done.out.splitlines() if " skipped: " in line]
    assert [line.split(" skipped")[0] for line in said] == [f"step {s}" for s in (1, 2, 4, 5)]
    assert "not finite: loss nan; its rows: " in said[1] and "train.jsonl:" in said[1]
    assert "not finite: the gradient of " in said[0]


def test_the_third_in_a_row_ends_the_run_and_leaves_the_weights_before_them(start):
    done, out = start(three_bad)
    assert done.code == errors.NOT_FINITE
    assert "not finite for 3 steps in a row, the last one step 4: loss nan; its rows: " in done.line
    assert "train.jsonl:" in done.line and "learning_rate" not in done.line
    assert done.line.endswith("saved after step 1; the same command goes on from there")
    assert [row["step"] for row in metrics(out)[0]] == [1, 2, 3]
    status = read(out, "status.json")
    assert (status["state"], status["exit_code"]) == ("failed", errors.NOT_FINITE)
    assert status["reason"] == done.line and not (out / "final").exists()

    # what was wrong is gone: the same command makes the run that would have been
    again, out = start(None)
    assert again.code == 0 and "goes on after step 1 of 6" in again.out, again.err
    assert [row["step"] for row in metrics(out)[0]] == [1, 2, 3, 4, 5, 6]
    assert read(out, "summary.json")["skipped_steps"] == 0


# ---------------------------------------------------------------- one update


class Optimizer:
    def __init__(self):
        self.calls = []

    def step(self):
        self.calls.append("step")

    def zero_grad(self):
        self.calls.append("zero_grad")


ROWS = SimpleNamespace(names=lambda: "a.jsonl:3")


def update(gradient, loss, state=None, **flags):
    """(norm returned, calls of the optimizer, the gradient that it saw)."""
    optimizer, module = Optimizer(), torch.nn.Linear(2, 1, bias=False)
    module.weight.grad = torch.tensor([gradient])
    accelerator = SimpleNamespace(unscale_gradients=lambda: None)
    config = TrainConfig(loss="sft", **flags)
    state = state or TrainState(step=7)
    found = train.update(accelerator, module, optimizer, {"loss": loss}, state, config, ROWS)
    assert type(found) is float
    return found, optimizer.calls, module.weight.grad[0].tolist()


@pytest.mark.parametrize("limit, scale", [(0.5, 0.1), (5.0, 1.0), (8.0, 1.0), (0, 1.0)])
def test_a_good_step_is_clipped_and_taken(limit, scale):
    norm, calls, seen = update([3.0, 4.0], 1.0, max_grad_norm=limit)
    assert (norm, calls) == (5.0, ["step", "zero_grad"])
    assert seen == pytest.approx([3 * scale, 4 * scale], rel=LOOSE)


@pytest.mark.parametrize(
    "gradient, loss", [([NAN, 1.0], 1.0), ([3.0, 4.0], INFINITY), ([INFINITY, 1.0], NAN)]
)
def test_a_step_that_is_not_finite_is_left_out(gradient, loss):
    """Not with fp16, whose scaler does that by itself and lowers its scale."""
    assert update(gradient, loss)[1] == ["zero_grad"]
    assert update(gradient, loss, mixed_precision="bf16")[1] == ["zero_grad"]
    assert update(gradient, loss, mixed_precision="fp16")[1] == ["step", "zero_grad"]


def test_three_in_a_row_end_the_run(capsys):
    state, good = TrainState(step=7), [3.0, 4.0]
    update([NAN, 0.0], 1.0, state)
    update(good, NAN, state)
    assert state.bad_steps == 2
    update(good, 1.0, state)
    assert (state.bad_steps, state.skipped) == (0, 2)
    for _ in range(2):
        update(good, NAN, state)
    message = (
        "loss or gradient not finite for 3 steps in a row, the last one step 7: the gradient of"
        " weight; its rows: a.jsonl:3; the weights are as before them"
    )
    with pytest.raises(errors.InputError, match=f"^{message}$") as error:
        update([NAN, 0.0], 1.0, state)
    assert error.value.exit_code == errors.NOT_FINITE


def test_fp16_may_skip_as_often_as_its_scaler_needs():
    state = TrainState(step=7)
    for _ in range(5):
        update([NAN, 0.0], 1.0, state, mixed_precision="fp16")
    assert (state.bad_steps, state.skipped) == (0, 5)


def test_too_large_a_share_of_all_steps_ends_the_run():
    """Every fourth step, which are never three in a row: not the 9th, but the 10th that is bad."""
    state = TrainState()
    for step in range(1, 40):
        state.step = step
        update([3.0, 4.0], NAN if step % 4 == 0 else 1.0, state)
    assert state.skipped == 9
    state.step = 40
    with pytest.raises(errors.InputError, match="^loss or gradient not finite in 10 of 40 steps"):
        update([3.0, 4.0], NAN, state)
    rare = TrainState(step=1000, skipped=99)
    update([3.0, 4.0], NAN, rare)
    assert rare.skipped == 100  # a tenth is not more than a tenth


def test_a_norm_that_overflows_is_said_without_a_parameter():
    """Each element is finite, the sum of their squares is not."""
    norm, wrong = finite.clip_gradient([("w", parameter([3e38, 3e38]))], 1.0)
    assert norm == INFINITY and wrong == "the norm of the gradient is too large for its dtype"
    three = [("a", parameter([1.0])), ("b", parameter([NAN])), ("c", parameter([INFINITY]))]
    assert finite.clip_gradient(three, 1.0)[1] == "the gradient of b and 1 more of 3 parameters"
    assert finite.clip_gradient([("a", parameter(None))], 1.0) == (0.0, "")


def parameter(gradient):
    made = torch.nn.Parameter(torch.zeros(len(gradient or [0.0])))
    made.grad = None if gradient is None else torch.tensor(gradient)
    return made


# ---------------------------------------------------------------- jumps


def test_a_jump_is_skipped_once_there_is_something_to_compare_with(capsys):
    state = TrainState()
    for step in range(finite.WINDOW // 2):
        state.step = step
        loss = 1e6 if step == 3 else 1.0 + step % 2  # too early to tell
        assert update([3.0, 4.0], loss, state, spike_guard=6.0)[1] == ["step", "zero_grad"]
    state.recent = [(1.0 + i % 2, 5.0) for i in range(finite.WINDOW)]
    before = list(state.recent)
    mean, spread = 1.5, 0.5
    bound = mean + 6 * spread
    assert update([3.0, 4.0], bound + 0.01, state, spike_guard=6.0)[1] == ["zero_grad"]
    assert state.recent == before and state.skipped == 1
    assert "skipped: loss 4.51, 1.5 on average before; its rows: a.jsonl:3" in (
        capsys.readouterr().out
    )
    assert update([3.0, 4.0], bound + 0.01, state)[1] == ["step", "zero_grad"]  # not asked for
    assert update([3.0, 4.0], bound, state, spike_guard=6.0)[1] == ["step", "zero_grad"]
    assert state.recent == [*before[1:], (bound, 5.0)]
    assert update([3.0, 4.1], 1.0, state, spike_guard=6.0)[1] == ["zero_grad"]  # the gradient
