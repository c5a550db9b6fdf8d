"""The command line: the flags of the chosen loss and no other's, and one line for every mistake."""

import os
import re
import subprocess
import sys
from dataclasses import MISSING, fields
from typing import get_type_hints

import pytest
from runs import ROOT

from data import errors
from data.errors import InputError
from losses import LOSSES
from losses.dpo import DPOConfig
from runtime.cli import loss_files, loss_flags, parse_args, read_flags
from runtime.config import TrainConfig, resolve

CONFIGS = {name: (loss_files()[name], loss.config) for name, loss in LOSSES.items()}
CONFIGS["train"] = (ROOT / "runtime" / "config.py", TrainConfig)


def parse(line: str):
    return parse_args(line.split())


def refused(line: str) -> str:
    with pytest.raises(InputError) as e:
        parse(line)
    assert e.value.exit_code == errors.USAGE and "\n" not in str(e.value)
    return str(e.value)


# ---------------------------------------------------------------- flags are the config classes


@pytest.mark.parametrize("path, config", CONFIGS.values(), ids=CONFIGS)
def test_flags_read_from_the_source_are_those_of_the_config_class(path, config):
    hints = get_type_hints(config)
    real = [(f.name, hints[f.name], f.default) for f in fields(config)]
    assert [
        (flag.name, flag.type, flag.default) for flag in read_flags(path, config.__name__)
    ] == real


@pytest.mark.parametrize("path, config", CONFIGS.values(), ids=CONFIGS)
def test_every_flag_has_a_sentence(path, config):
    for flag in read_flags(path, config.__name__):
        assert flag.help[0].isupper() and flag.help.endswith("."), flag
        assert "\n" not in flag.help, flag


BASE = """
@dataclass(frozen=True)
class BaseConfig:
    first: int = 1
    \"\"\"From the base.\"\"\"
    second: float = 2.0
    \"\"\"Overridden below.\"\"\"
"""
INHERITED = """
@dataclass(frozen=True)
class OwnConfig(BaseConfig):
    third: str = "3"
    \"\"\"Its own.\"\"\"
    second: float = 2.5
    \"\"\"Another default in the same place.\"\"\"

LOSS = Loss(name="own", config=OwnConfig)
"""


@pytest.mark.parametrize("where", ["same file", "relative import", "under another name"])
def test_flags_of_base_classes_are_read_in_the_order_of_a_dataclass(tmp_path, where):
    """The subclass is taken although a class whose name ends in Config stands above it."""
    file, text = tmp_path / "own.py", BASE + INHERITED
    if where != "same file":
        (tmp_path / "base.py").write_text(BASE)
        other = where == "under another name"
        text = f"from .base import BaseConfig{' as Other' * other}\n{INHERITED}"
        text = text.replace("(BaseConfig)", "(Other)") if other else text
    file.write_text(text)
    flags = read_flags(file, "OwnConfig")
    assert [(f.name, f.default) for f in flags] == [("first", 1), ("second", 2.5), ("third", "3")]
    assert flags[1].help == "Another default in the same place."


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "class OwnConfig(Elsewhere): pass",
            "the base class Elsewhere is neither here",
        ),
        ("from torch import nn\nclass OwnConfig(nn.Module): pass", "the base class nn.Module is"),
        ("from .nothing import B\nclass OwnConfig(B): pass", "the base class B is neither here"),
        ("class Another: pass", "no class OwnConfig"),
        ("class OwnConfig:\n    a: int = field(default=3)", ":2: a: int = field"),
        ("class OwnConfig:\n    a: list[int] = 3", ":2: a: list"),
        ("class OwnConfig:\n    a: Path = 3", ":2: a: Path"),
    ],
)
def test_a_class_whose_flags_cannot_be_read_is_an_error(tmp_path, text, message):
    """Else its flags would be missing from the command line, in silence."""
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(TypeError, match=re.escape(message)):
        read_flags(tmp_path / "own.py", "OwnConfig")


def test_losses_of_the_command_line_are_the_registered_ones():
    assert set(loss_files()) == set(LOSSES)
    assert all(LOSSES[name].name == name for name in LOSSES)


def test_a_loss_has_no_flag_that_all_share():
    shared = {f.name for f in fields(TrainConfig)}
    for loss in LOSSES.values():
        assert not shared & {f.name for f in fields(loss.config)}


@pytest.mark.parametrize("name", LOSSES)
def test_help_lists_the_flags_of_the_loss_and_no_other_s(name, capsys):
    with pytest.raises(SystemExit) as e:
        parse(f"--loss {name} --help")
    assert not e.value.code
    shown = {word.strip(",") for word in capsys.readouterr().out.split() if word.startswith("--")}
    own = {f"--{flag.name}" for flag in loss_flags(name)}
    others = {f"--{f.name}" for loss in LOSSES.values() for f in fields(loss.config)} - own
    assert own | {"--loss", "--max_steps", "--config"} <= shown
    assert not others & shown


def test_help_answers_at_once_and_imports_no_heavy_package():
    program = """
import resource, runpy, sys
sys.argv = ["train.py", "--help"]
try:
    runpy.run_path("train.py", run_name="__main__")
except SystemExit as end:
    assert not end.code
heavy = {"torch", "transformers", "accelerate", "datasets", "numpy"} & set(sys.modules)
used = resource.getrusage(resource.RUSAGE_SELF)
print(heavy, used.ru_utime + used.ru_stime)
sys.exit(bool(heavy) or used.ru_utime + used.ru_stime > 1)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-300:] + done.stderr
    assert "--learning_rate" in done.stdout and "--beta" not in done.stdout


# ---------------------------------------------------------------- what is accepted


def test_both_spellings_of_a_flag_are_taken():
    for line in ("--loss dpo --max_steps 3", "--loss=dpo --max-steps=3"):
        args = parse(line)
        assert (args.train.loss, args.train.max_steps) == ("dpo", 3)
        assert args.origin == {"loss": "command line", "max_steps": "command line"}


def test_defaults_and_the_loss_s_own_flags():
    args = parse("--loss dpo --beta 0.3 --dry_run")
    assert args.train == TrainConfig(loss="dpo", dry_run=True)
    assert args.loss_flags["beta"] == 0.3 and args.loss_flags["variant"] == "sigmoid"
    assert parse("--loss sft").loss_flags == {}
    assert parse("--loss dpo --no_overwrite").origin["overwrite"] == "command line"


def test_what_is_left_open_comes_from_the_loss_or_from_pocket():
    presets = {"dpo": {"max_steps": 7, "batch_size": 3, "learning_rate": 0.5, "beta": 0.7}}
    run = resolve(parse("--loss dpo --batch_size 9"), DPOConfig, 1e-6, presets)
    config, origin = run.train, run.origin
    assert (config.max_steps, config.batch_size, run.learning_rate) == (7, 9, 0.5)
    assert run.output_dir == "runs/dpo" and run.loss == DPOConfig(beta=0.7)
    assert origin["learning_rate"] == origin["beta"] == "default for pocket"
    assert origin["batch_size"] == "command line"
    assert resolve(parse("--loss dpo --beta 0.2"), DPOConfig, 1e-6, presets).loss.beta == 0.2
    run = resolve(parse("--loss dpo --data mine.jsonl"), DPOConfig, 1e-6, presets)
    config = run.train
    assert (config.max_steps, config.batch_size, run.learning_rate) == (None, 16, 1e-6)
    assert run.origin["learning_rate"] == "default for dpo" and run.loss == DPOConfig()
    run = resolve(parse("--loss dpo"), DPOConfig, 1e-6, {"sft": {"batch_size": 3}})
    assert (run.train.batch_size, run.learning_rate) == (16, 1e-6)


def test_the_shortest_length_is_a_prompt_and_a_response_of_one_token():
    assert TrainConfig(loss="sft", max_length=2).max_length == 2
    with pytest.raises(ValueError, match="^--max_length 1: at least 2"):
        TrainConfig(loss="sft", max_length=1)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("line, message", [
    ("", "--loss is missing: one of dpo, "),
    ("--los dpo", "; you wrote --los"),
    ("--loss dop", "--loss dop: did you mean dpo?"),
    ("--loss xyz", "--loss xyz: choose from dpo, "),
    ("--loss dpo --max_step 3", "unknown flag --max_step: did you mean --max_steps?"),
    ("--loss dpo --bta 3", "unknown flag --bta: did you mean --beta?"),
    ("--loss dpo --zzz 3", "unknown flag --zzz: python train.py --help lists them"),
    ("--loss sft --label_smoothing 1", "unknown flag --label_smoothing: it belongs to --loss dpo"),
    ("--loss dpo stray", "unexpected argument 'stray'; flags start with --"),
    ("--loss dpo --beta", "--beta: its value is missing"),
    ("--loss dpo --beta x", "--beta: 'x' is not a number"),
    ("--loss dpo --seed 1.5", "--seed: '1.5' is not a whole number"),
    ("--loss dpo --max_steps 1.5", "--max_steps: '1.5' is not valid here"),
    ("--loss dpo --schedule cos", "--schedule: 'cos' is none of 'constant', 'linear', 'cosine'"),
    ("--loss dpo --variant x", "--variant: 'x' is none of 'sigmoid', 'robust', "),
])  # fmt: skip
def test_a_mistake_is_one_line_that_says_what_to_write(line, message):
    assert message in refused(line)


@pytest.mark.parametrize("flag, values", [
    ("max_steps", "0 -3"),
    ("epochs", "0 -1 nan inf"),
    ("batch_size", "0 -1"),
    ("max_tokens", "0 -1"),
    ("max_length", "1 0 -1"),
    ("learning_rate", "0 -1 nan inf"),
    ("warmup", "-0.1 nan inf"),
    ("weight_decay", "-1 nan inf"),
    ("max_grad_norm", "-1 nan inf"),
    ("eval_every", "-1"),
    ("seed", "-1"),
])  # fmt: skip
def test_values_out_of_range_are_refused_by_name(flag, values):
    for value in values.split():
        assert refused(f"--loss dpo --{flag}={value}").startswith(f"--{flag} {value}")


@pytest.mark.parametrize("columns", ["5", "1", "0", "-1", "abc"])
def test_help_ends_on_every_terminal(columns):
    command = [sys.executable, "train.py", "--help"]
    narrow = os.environ | {"COLUMNS": columns}
    done = subprocess.run(command, cwd=ROOT, env=narrow, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "--loss" in done.stdout


def test_flags_without_a_default_are_only_the_loss():
    needed = [f.name for _, c in CONFIGS.values() for f in fields(c) if f.default is MISSING]
    assert needed == ["loss"]


# ---------------------------------------------------------------- a flag given twice


@pytest.mark.parametrize("line, name", [
    ("--loss dpo --data a --data b", "data"),
    ("--loss dpo --data=a --data b", "data"),
    ("--loss dpo --data=a --data=a", "data"),
    ("--loss dpo --max-steps 3 --max_steps 3", "max_steps"),
    ("--loss dpo --overwrite --no_overwrite", "overwrite"),
    ("--loss dpo --overwrite --no-overwrite", "overwrite"),
    ("--loss dpo --dry_run --dry-run", "dry_run"),
    ("--loss dpo --loss sft", "loss"),
    ("--loss dpo --beta 0.1 --beta 0.2", "beta"),
    ("--loss dpo --nosuch 1 --nosuch 2", "nosuch"),
])  # fmt: skip
def test_field_13_a_flag_given_twice_is_refused(line, name):
    """Of `--data a.jsonl --data b.jsonl` only the last would be read, in silence."""
    assert refused(line).startswith(f"--{name} is given twice; give it once")


def test_field_13_what_is_said_of_a_flag_given_often():
    assert (
        refused("--loss dpo --seed 1 --seed=2 --seed 3") == "--seed is given 3 times; give it once"
    )
    assert refused("--loss dpo --data a --data b").endswith("several data sets are one value: a,b")


def test_field_13_two_config_files_are_refused(config_file):
    flags = f"{config_file('loss: dpo')} {config_file('seed: 3', 'other.yaml')}"
    assert refused(flags) == "--config is given twice; give it once"


def test_field_13_a_value_that_is_given_twice_is_no_repeat(config_file):
    assert parse("--loss dpo --data x --eval_data x").train.eval_data == "x"
    assert parse(f"{config_file('seed: 3')} --loss dpo --seed 4").train.seed == 4
    assert parse(config_file("loss: dpo\ndata: &a x\neval_data: *a\n")).train.eval_data == "x"


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize("name", ["bfloat16", "bf16", "float16", "fp16", "half"])
def test_field_08_weights_in_half_precision_are_refused_with_the_flag_to_use(config_file, name):
    for line in (f"--loss dpo --dtype {name}", config_file(f"loss: dpo\ndtype: {name}")):
        message = refused(line)
        assert message.startswith(f"--dtype {name}: updates smaller than half a unit in the last")
        assert message.endswith(
            "--mixed_precision bf16, which keeps weights and optimizer in float32"
        )
    assert "'float32', 'float64'" in refused("--loss dpo --dtype int8")


def test_field_08_help_offers_no_precision_that_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse("--loss dpo --help")
    shown = capsys.readouterr().out
    assert "--dtype {float32,float64}" in shown and "--mixed_precision {auto,no,bf16,fp16}" in shown


@pytest.mark.parametrize("flag", ["--data", "--output_dir", "--model", "--eval_data", "--columns"])
@pytest.mark.parametrize("value", ["", " ", "a\0b"])
def test_an_empty_value_is_refused(flag, value):
    """A shell variable that is not set: the run would go to the present directory, or read it."""
    with pytest.raises(InputError, match=f"^{flag} (is empty|.* NUL)") as error:
        parse_args(["--loss", "sft", flag, value])
    assert error.value.exit_code == errors.USAGE


def test_a_name_that_is_no_utf_8_is_refused():
    """Libraries in Rust cannot open it, after all the work."""
    with pytest.raises(InputError, match="not UTF-8; rename it, or set PYTHONUTF8=1") as error:
        parse_args(
            ["--loss", "sft", "--output_dir", b"runs/\xe9".decode("utf-8", "surrogateescape")]
        )
    assert error.value.exit_code == errors.USAGE
    assert str(error.value).isascii()
