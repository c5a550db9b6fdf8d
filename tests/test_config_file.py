"""The YAML file of --config: what is read of it, and one line for every mistake."""

import os
import re

import pytest
from test_cli import parse, refused

from data import errors
from data.errors import InputError


def test_a_config_file_gives_flags_and_the_command_line_overrides_them(config_file):
    text = "loss: dpo\nbeta: 0.3\nmax-steps: 7\nlearning_rate: 1e-4\noverwrite: true\nseed: null\n"
    args = parse(f"{config_file(text)} --beta 0.5")
    assert args.train.loss == "dpo" and args.train.max_steps == 7 and args.train.seed == 0
    assert args.train.learning_rate == 1e-4 and args.train.overwrite
    assert args.loss_flags["beta"] == 0.5
    assert args.origin["max_steps"] == args.origin["learning_rate"] == "config file"
    assert args.origin["beta"] == "command line"
    assert not parse(f"{config_file(text)} --no_overwrite").train.overwrite


def test_the_loss_of_the_command_line_wins_over_that_of_the_file(config_file):
    assert parse(f"--loss sft {config_file('loss: dpo')}").train.loss == "sft"
    assert parse(f"--loss sft {config_file('')}").train.loss == "sft"


@pytest.mark.parametrize("text, message", [
    ("loss: dpo\nbta: 0.3", "unknown key bta: did you mean --beta?"),
    ("loss: sft\nvariant: ipo", "unknown key variant: it belongs to --loss dpo, not to --loss sft"),
    ("loss: dpo\nbeta: x", "--beta: 'x' is not a number"),
    ("loss: 3", "--loss 3: choose from dpo"),
    ("loss: dpo\nmax_steps: 0", "--max_steps 0 must be above 0"),
    ("loss: dpo\ndry_run: 1", "dry_run: '1'; give true or false"),
    ("loss: dpo\ndry_run: 'true'", "dry_run: 'true'; give true or false"),
    ("loss: dpo\nconfig: other.yaml", "config: a file cannot name another"),
    ("loss: dpo\nseed: 1:30", "--seed: '1:30' is not a whole number"),
    ("loss: dpo\ndata: [a, b]", "run.yaml:2: data: a list; several are one value with commas: a,b"),
    ("loss: dpo\ndata: {a: 2}", "run.yaml:2: data: not text, a number, true, false or null"),
    ("loss: dpo\ndata: !!python/object:os.system x", "not text, a number, true, false or null"),
    ("loss: dpo\n? [a]\n: 3", "run.yaml:2: a key that is no flag's name"),
    ("loss: dpo\n<<: {seed: 3}", "<<: not text"),
    ("loss: dpo\n<<: 3", "unknown key <<"),
    ("loss: dpo\nseed: " + "9" * 5000, "--seed: a number of too many digits"),
    ("a: " + "[" * 100_000, "brackets too deep"),
    ("a: &a [x]\nb: &b [*a,*a,*a]\nc: &c [*b,*b,*b]\nloss: *c", "a: a list"),
    ("#" * (4 << 20) + "\n", "over 4 MiB; is it another file?"),
    ("- loss", "not a mapping of flags to values"),
    ("loss: [", "expected the node content"),
    (b"loss: \xff", "not UTF-8"),
])  # fmt: skip
def test_a_bad_config_file_is_one_line(config_file, text, message):
    assert message in refused(config_file(text))


@pytest.mark.parametrize("text, seed", [("010", 10), ("1_0", 10), ("~", 0), ("null", 0), ("", 0)])
def test_a_number_in_a_config_file_is_what_the_command_line_would_read(config_file, text, seed):
    """By YAML's own rules 010 is 8."""
    args = parse(config_file(f"loss: dpo\nseed: {text}"))
    assert args.train.seed == seed
    assert ("seed" in args.origin) == (seed != 0)


def test_words_and_floats_of_a_config_file_are_taken_as_written(config_file):
    text = "loss: dpo\nmixed_precision: no\nlearning_rate: 1e-5\nbeta: .5\ndry_run: Yes\ndata: --x"
    args = parse(config_file(text))
    config = args.train
    assert (config.mixed_precision, config.learning_rate, config.dry_run) == ("no", 1e-5, True)
    assert (args.loss_flags["beta"], config.data) == (0.5, "--x")


@pytest.mark.timeout(60)
def test_a_config_file_is_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path / "pipe.yaml", "/dev/zero"):
        with pytest.raises(InputError, match="not a file but a pipe or a device"):
            parse(f"--loss dpo --config {path}")


def test_a_missing_config_file_is_missing_input():
    with pytest.raises(InputError, match=r"--config none.yaml: No such file") as e:
        parse("--loss dpo --config none.yaml")
    assert e.value.exit_code == errors.NO_INPUT


@pytest.mark.parametrize("text, name", [
    ("loss: dpo\ndata: a\ndata: b\n", "data"),
    ("loss: dpo\nmax_steps: 1\nseed: 2\nmax-steps: 1\n", "max_steps"),
    ("{loss: dpo, loss: dpo}", "loss"),
])  # fmt: skip
def test_field_13_a_key_given_twice_in_a_config_file_is_refused(config_file, text, name):
    flag = config_file(text)
    assert re.fullmatch(rf"{flag}:\d: --{name} is given twice; give it once", refused(flag))
