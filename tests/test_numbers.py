"""Numbers that Python takes and a run cannot: 0 or infinite in float32, or too large by far."""

import pytest
from runs import QUICK, pocket_rows, run, write_rows

from data import errors
from data.batches import total_steps
from data.errors import InputError
from data.pocket import DEFAULTS
from losses import LOSSES
from runtime.cli import parse_args
from runtime.config import resolve
from runtime.guards.limits import check_numbers, check_repeats


def check(line):
    args = parse_args(line.split())
    loss = LOSSES[args.train.loss]
    check_numbers(resolve(args, loss.config, loss.learning_rate, DEFAULTS))


@pytest.mark.parametrize("flag, message", [
    ("--learning_rate 1e-60", "--learning_rate 1e-60 is 0 in float32"),
    ("--learning_rate 1e60", "--learning_rate 1e+60 is inf in float32"),
    ("--beta 1e-50", "--beta 1e-50 is 0 in float32"),
    ("--beta 4e38", "--beta 4e+38 is inf in float32"),
    ("--weight_decay 1e300", "--weight_decay 1e+300 is inf in float32"),
    ("--max_steps 2147483648", "--max_steps 2147483648: at most 2,147,483,647"),
    ("--batch_size 10000000000", "--batch_size 10000000000: at most 2,147,483,647"),
    ("--seed 4294967296", "--seed 4294967296: at most 2,147,483,647"),
])  # fmt: skip
def test_a_number_that_the_run_cannot_hold_is_refused_by_name(flag, message):
    with pytest.raises(InputError) as refused:
        check(f"--loss dpo {flag}")
    assert (str(refused.value), refused.value.exit_code) == (message, errors.USAGE)
    if "float32" in message:
        check(f"--loss dpo {flag} --dtype float64")


def test_numbers_at_the_bounds_are_taken():
    check("--loss dpo --learning_rate 1e-44 --beta 3.4e38 --weight_decay 0 --max_steps 2147483647")
    check("--loss ppo --kl_coef 0 --gamma 1 --seed 2147483647")


def test_a_step_takes_a_row_more_than_once_but_not_without_end(tmp_path):
    check_repeats("--batch_size", 256, 1)
    with pytest.raises(
        InputError, match="^--batch_size 257: each of the 1 rows would be taken 257"
    ):
        check_repeats("--batch_size", 257, 1)
    data = write_rows(tmp_path, *pocket_rows(22, 8))
    done = run("--loss", "dpo", "--data", data, *QUICK, "--batch_size", 100_000)
    assert done.code == errors.USAGE and "would be taken 4,545 times at once" in done.line
    done = run("--loss", "ppo", *QUICK, "--rollout_size", 4_000_000)
    assert done.code == errors.USAGE and done.line.startswith("--rollout_size 4000000: each of the")


@pytest.mark.parametrize("epochs", [1e308, 1e12])
def test_steps_that_cannot_be_counted_are_refused(epochs):
    with pytest.raises(InputError, match="^--epochs .*: .* steps; give at most 2\\^31$"):
        total_steps(1000, 4, epochs, None)
    assert total_steps(1000, 4, epochs, 7) == 7


def test_a_margin_is_finite_in_float32(tmp_path):
    train, heldout = pocket_rows(8, 4)
    data = write_rows(tmp_path, [row | {"margin": 1e39} for row in train], heldout)
    done = run("--loss", "reward", "--data", data, *QUICK)
    assert done.code == errors.BAD_DATA and ":1:margin: 1e+39 is not finite in float32" in done.line


@pytest.mark.parametrize("waits, code", [(1, 0), (2, errors.USAGE)])
def test_the_critic_alone_does_not_learn_all_the_time(tmp_path, waits, code):
    flags = ("--rollout_size", 16, "--batch_size", 8, "--ppo_epochs", 1, "--max_steps", 4)
    done = run("--loss", "ppo", *flags, "--critic_warmup", waits, "--dry_run", cwd=tmp_path)
    assert done.code == code
    assert not code or "the run has 2 rollouts, and the policy would learn in none" in done.line
