"""Steps whose loss or gradient is not finite: skipped, and the run ends at the third in a row."""

import pytest
from runs import metrics, pocket_rows, read, run, write_rows

import train
from data import errors

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
