"""Whatever a user gives, a run does it or refuses it: one line, a documented code, and soon.

ALIGNMENT_CASES=20000 python -m pytest tests/test_fuzz.py   tries so many of each kind (make fuzz).
"""

import contextlib
import json
import os
import signal
import string
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from runs import BASE, copy_base, pocket_rows, run, write_rows

from data import errors
from data.encode import encode_records
from data.errors import InputError
from data.options import read_options
from data.pocket import DEFAULTS
from data.prompts import encode_prompts, load_prompts
from data.records import load_data
from losses import LOSSES
from models.load import load_causal_lm, load_tokenizer
from runtime.cli import parse_args
from runtime.config import TrainConfig, check_paths, resolve
from runtime.directory import RunDirectory, check_directory
from runtime.guards.limits import check_numbers

CASES = int(os.environ.get("ALIGNMENT_CASES", 60))
CODES = {v for k, v in vars(errors).items() if k.isupper() and isinstance(v, int) and v < 100}
fuzz = settings(
    max_examples=CASES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)


@contextmanager
def refused_or_done():
    """The block ends within 20 seconds, and raises nothing but an InputError of one line."""

    def late(*_):
        raise TimeoutError("20 seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    try:
        yield
    except InputError as error:
        line = str(error)
        assert error.exit_code in CODES and line and line.isprintable() and len(line) <= 1300
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# ---------------------------------------------------------------- flags

NASTY = st.sampled_from([
    "", " ", "0", "-1", "1", "2", "1e308", "-1e308", "nan", "inf", "-inf", "1e-320", "1_0", "٣",
    "9" * 30, "9" * 5000, "0x10", "1.5", "true", "None", "a\nb", "a\0b", "\x1b[31m", "$(x)", "{}",
    "'", "`", "../..", "/", ".", "~", "~nobody-at-all/x", "/dev/null", "/dev/zero",
    "/proc/self/mem", "é", "\ud800", "a" * 3000, "a,b", "=", "a=b", "[train,heldout]", "*", "**",
    "?", "x:y", "@",
    "https://user:password@host/x", "pocket", "piqa", "org/name", "--loss", "-h", "\u202e", "👍",
])  # fmt: skip
ANY = NASTY | st.text(max_size=20) | st.floats().map(str) | st.integers().map(str)
SHARED = [field.name for field in fields(TrainConfig)]
OWN = {name: [field.name for field in fields(loss.config)] for name, loss in LOSSES.items()}


@st.composite
def command_lines(draw):
    loss = draw(st.sampled_from(sorted(LOSSES)))
    names = st.sampled_from([*SHARED, *OWN[loss]]) | st.text(string.ascii_lowercase, max_size=8)
    line = ["--loss", loss]
    for name in draw(st.lists(names, max_size=4)):
        value = draw(ANY)
        line += draw(st.sampled_from([[f"--{name}", value], [f"--{name}={value}"], [f"--{name}"]]))
    return line


@fuzz
@given(command_lines())
def test_any_command_line(line):
    assume(not {"-h", "--help"} & set(line))
    with refused_or_done():
        try:
            args = parse_args(line)
        except SystemExit as end:  # a help flag in a value's place
            assert end.code == 0
            return
        loss = LOSSES[args.train.loss]
        resolved = resolve(args, loss.config, loss.learning_rate, DEFAULTS)
        check_numbers(resolved)
        check_paths(resolved)
        check_directory(Path(resolved.output_dir), overwrite=False)


YAML = st.recursive(
    ANY | st.booleans().map(str) | st.none().map(str),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda v: f"[{', '.join(v)}]")
        | st.dictionaries(ANY, inner, max_size=3).map(
            lambda v: "{" + ", ".join(f"{k}: {x}" for k, x in v.items()) + "}"
        )
    ),
    max_leaves=6,
)


@fuzz
@given(
    st.lists(st.tuples(st.sampled_from([*SHARED, "beta", "<<", "&a x", "? y"]), YAML)), st.data()
)
def test_any_config_file(tmp_path_factory, pairs, data):
    file = tmp_path_factory.getbasetemp() / "run.yaml"
    text = "\n".join(["loss: dpo", *(f"{key}: {value}" for key, value in pairs)])
    raw = text.encode("utf-8", "surrogatepass")
    file.write_bytes(data.draw(st.sampled_from([raw, raw[::-1], raw + b"\xff"])))
    with refused_or_done():
        parse_args(["--config", str(file)])


# ---------------------------------------------------------------- data

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY.map(lambda s: s[:50]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY, inner, max_size=3),
    max_leaves=6,
)
ROLES = st.sampled_from(["user", "assistant", "system", "tool", "x", "", None])
MESSAGE = st.fixed_dictionaries({"role": ROLES, "content": ANY | st.none()}) | VALUES
TEXT = ANY | st.lists(MESSAGE, max_size=4) | VALUES
COLUMNS = st.sampled_from([
    "prompt", "chosen", "rejected", "completion", "text", "messages", "conversations", "label",
    "margin", "system", "tools", "chat_template_kwargs", "instruction", "input", "output", "goal",
    "sol1", "sol2", "id", "score", "", "Prompt",
])  # fmt: skip
ROWS = st.lists(
    st.dictionaries(COLUMNS, TEXT, max_size=5)
    | st.fixed_dictionaries({"prompt": TEXT, "chosen": TEXT, "rejected": TEXT})
    | st.fixed_dictionaries({"prompt": ANY, "chosen": ANY, "rejected": ANY})
    | VALUES,
    min_size=1,
    max_size=4,
)


@cache
def pocket_tokenizer():
    return load_tokenizer("pocket")


def as_file(rows, kind):
    """What a careless program could make of rows."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    if kind == "json":
        return json.dumps(rows, ensure_ascii=False)
    if kind in ("csv", "tsv"):
        separator = "," if kind == "csv" else "\t"
        named = [row for row in rows if isinstance(row, dict)] or [{"a": 1}]
        cells = [list(named[0]), *(list(map(str, row.values())) for row in named)]
        return "\n".join(separator.join(f'"{c}"' if "," in c else c for c in row) for row in cells)
    return "\n".join(lines) + "\n"


@fuzz
@given(
    ROWS,
    st.sampled_from(["jsonl", "json", "csv", "tsv", "txt", "parquet", "jsonl.gz"]),
    st.sampled_from(sorted(LOSSES)),
    st.sampled_from(["stop", "skip"]),
    st.data(),
)
def test_any_data_file(tmp_path_factory, rows, kind, loss, bad_rows, data):
    file = tmp_path_factory.getbasetemp() / f"rows.{kind}"
    raw = as_file(rows, kind).encode("utf-8", "surrogatepass")
    if data.draw(st.booleans()):
        start = data.draw(st.integers(0, len(raw)))
        raw = raw[:start] + data.draw(st.binary(max_size=8)) + raw[start:]
    file.write_bytes(raw)
    tokenizer = pocket_tokenizer()
    given = {"columns": None, "ignore": None, "split": None, "chat": data.draw(st.booleans())}
    with refused_or_done():
        options = read_options(**given, bad_rows=bad_rows, train_on="all")
        if loss == "ppo":
            train, *_ = load_prompts(str(file), 0, options=options)
            encode_prompts(train, tokenizer, 128, options)
        else:
            pairs = LOSSES[loss].responses_per_row == 2
            train, *_ = load_data(str(file), pairs=pairs, options=options)
            encode_records(train, tokenizer, max_length=128, bad_rows=bad_rows)


# ---------------------------------------------------------------- model and run directories

MODEL_KEYS = st.sampled_from([
    "model_type", "architectures", "num_hidden_layers", "hidden_size", "vocab_size", "dtype",
    "num_attention_heads", "num_key_value_heads", "max_position_embeddings", "rope_parameters",
    "text_config", "auto_map", "quantization_config", "eos_token_id", "hidden_act", "head_dim",
    "attn_implementation", "num_labels", "id2label", "torch_dtype", "rope_scaling", "use_cache",
])  # fmt: skip
MODEL_FILES = ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return copy_base(tmp_path_factory.mktemp("model") / "m")


@fuzz
@given(st.dictionaries(MODEL_KEYS, VALUES | st.integers(0, 4), min_size=1, max_size=2))
def test_any_config_of_a_model(model, change):
    whole = json.loads((BASE / "config.json").read_text("utf-8"))
    sizes = [v for v in change.values() if isinstance(v, int) and abs(v) > 100_000]
    assume(not sizes)  # a model of that size would be made
    (model / "config.json").write_text(json.dumps(whole | change), "utf-8")
    with refused_or_done():
        load_tokenizer(str(model))
        load_causal_lm(str(model), dtype="float32")
    (model / "config.json").write_text(json.dumps(whole), "utf-8")


@fuzz
@given(st.sampled_from([*MODEL_FILES, "model.safetensors"]), st.data())
def test_any_damage_to_a_model(model, name, data):
    whole = (BASE / name).read_bytes()
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, min(len(whole), 4000))] * 2)))
    spoiled = whole[:start] + data.draw(st.binary(max_size=6)) + whole[end:]
    (model / name).write_bytes(data.draw(st.sampled_from([spoiled, whole[:start], b""])))
    try:
        with refused_or_done():
            load_tokenizer(str(model))
            load_causal_lm(str(model), dtype="float32")
    finally:
        (model / name).write_bytes(whole)


@fuzz
@given(
    st.dictionaries(
        st.sampled_from(["run.json", "status.json", "config.json", "metrics.jsonl", "final"]),
        VALUES.map(lambda v: json.dumps(v, ensure_ascii=False)) | ANY,
    ),
    st.booleans(),
)
def test_any_content_of_a_run_directory(tmp_path_factory, files, overwrite):
    folder = tmp_path_factory.mktemp("run")
    outside = folder.parent / "outside"
    outside.write_text("the user's own", "utf-8")
    marker = {"made_by": "alignment-losses", "files": ["../outside", "final/x", str(outside)]}
    for name, text in ({"run.json": json.dumps(marker)} | files).items():
        (folder / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with refused_or_done():
        try:
            directory = RunDirectory(folder, overwrite=overwrite)
        except InputError:
            after = {f.name: f.read_bytes() for f in folder.iterdir() if f.name != "run.lock"}
            assert after == before
            raise
        with contextlib.closing(directory):
            directory.begin({})
    assert outside.read_text("utf-8") == "the user's own"


# ---------------------------------------------------------------- whole runs


@pytest.mark.parametrize("env, codes", [
    ({"COLUMNS": "3"}, {0}),
    ({"WORLD_SIZE": "abc"}, {errors.USAGE}),
    ({"RANK": "1"}, {0, errors.USAGE}),
    ({"LOCAL_RANK": "x", "RANK": "y"}, {errors.USAGE}),
    ({"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}, {0}),
    ({"HOME": "/nonexistent", "TMPDIR": "/nonexistent"}, {0}),
    ({"ACCELERATE_MIXED_PRECISION": "int3"}, {errors.USAGE}),
    ({"OMP_NUM_THREADS": "many"}, {0}),
])  # fmt: skip
def test_any_surroundings(tmp_path, env, codes):
    data = write_rows(tmp_path / "é data", *pocket_rows(8, 4))
    done = run("--loss", "dpo", "--data", data, "--dry_run", cwd=tmp_path, env=env)
    assert done.code in codes, (done.code, done.err)
    assert done.err == "" if done.code == 0 else done.line
