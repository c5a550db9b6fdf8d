"""Texts longer than a model has positions for: refused before any of its weights is loaded."""

import json

import pytest
import torch
from runs import no_model, pocket_rows, random_llama, run, write_rows
from transformers import CONFIG_MAPPING

from data import errors
from data.errors import InputError
from data.row_table import Row, RowTable
from models.checkpoint import check_room, max_positions
from models.load import load_scorer, load_tokenizer
from rollout.reward_model import load_reward_model

LENGTHS = [(3, 4, 1), (2, 1, 7), (5, 1, 2)]  # prompt and responses


def edit(folder, name="config.json", **fields):
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | fields), "utf-8")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("data"), *pocket_rows(8, 4))


@pytest.mark.parametrize("kind, fields, expected", [
    ("llama", {"max_position_embeddings": 64}, 64),
    ("gpt2", {"n_positions": 64}, 64),
    ("opt", {"max_position_embeddings": 64}, 64),
    ("gptj", {"n_positions": 64}, 64),
    ("mpt", {"max_seq_len": 64, "attn_config": {"alibi": False}}, 64),
    ("mpt", {"max_seq_len": 64}, None),
    ("bloom", {"seq_length": 64}, None),
    ("falcon", {"max_position_embeddings": 64, "alibi": True}, None),
    ("falcon", {"max_position_embeddings": 64}, 64),
    ("t5", {"n_positions": 64}, None),
    ("mamba", {}, None),
    ("gemma3", {"text_config": {"max_position_embeddings": 64}}, 64),
    ("llama", {"max_position_embeddings": 64, "rope_scaling": {
        "rope_type": "linear", "factor": 4.0}}, 256),
    ("qwen2", {"max_position_embeddings": 64, "rope_scaling": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}, 256),
    ("llama", {"max_position_embeddings": 512, "rope_scaling": {
        "rope_type": "llama3", "factor": 4.0, "original_max_position_embeddings": 64,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0}}, 512),
])  # fmt: skip
def test_field_23_positions_by_the_names_of_all_families(kind, fields, expected):
    assert max_positions(CONFIG_MAPPING[kind](**fields)) == expected


@pytest.mark.parametrize("name", [
    "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length",
    "seq_length",
])  # fmt: skip
def test_field_23_every_name_is_read(name):
    config = CONFIG_MAPPING["mamba"]()
    setattr(config, name, 64)
    assert max_positions(config) == 64
    setattr(config, name, -1)  # XLNet's: none
    assert max_positions(config) is None


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """Pocket's tokenizer, and a model of 16 positions."""
    folder = tmp_path_factory.mktemp("short")
    random_llama(folder, load_tokenizer("pocket"))
    edit(folder, max_position_embeddings=16)
    return folder


@pytest.mark.parametrize("loss, flag, more", [
    ("sft", "--model", []), ("dpo", "--model", []), ("dpo", "--ref_model", []),
    ("reward", "--model", []), ("dpo", "--model", ["--max_length", 20]),
])  # fmt: skip
@pytest.mark.parametrize("dry", [False, True])
def test_field_23_rows_longer_than_the_positions_are_refused_before_weights(
    tmp_path, short, data, loss, flag, more, dry
):
    flags = ["--data", data, flag, short, *more, *["--dry_run"] * dry]
    done = run("--loss", loss, *flags, before=no_model, cwd=tmp_path)
    tokenizer = load_tokenizer("pocket")
    names = ["chosen"] if loss == "sft" else ["chosen", "rejected"]
    rows = [row for part in pocket_rows(8, 4) for row in part]
    lengths = [len(tokenizer(r["prompt"] + r[n])["input_ids"]) + 1 for r in rows for n in names]
    if loss == "sft":  # of held-out rows the other response is kept
        lengths += [
            len(tokenizer(r["prompt"] + r["rejected"])["input_ids"]) + 1
            for r in pocket_rows(8, 4)[1]
        ]
    most = more[1] if more else 1024
    assert done.code == errors.USAGE
    assert done.line == (
        f"--max_length {most}: the longest row has {min(most, max(lengths))} tokens and"
        f" {flag} {short} takes 16 positions; give --max_length 16"
    )


def test_field_23_the_longest_row_is_that_of_the_longest_response():
    rows = [Row(0, [5] * n, [[5] * k for k in ks], [True] * 2, [1] * 2) for n, *ks in LENGTHS]
    assert [RowTable.of(part).longest() for part in (rows[:2], rows[2:])] == [9, 7]


def test_field_23_the_length_that_is_advised_is_taken(tmp_path, short, data):
    flags = ["--data", data, "--model", short, "--max_length", 16, "--dry_run"]
    done = run("--loss", "sft", *flags, before=no_model, cwd=tmp_path)
    assert done.code == 0, done.err


def classifier(folder, short):
    """A reward model of the same size."""
    tokenizer = load_tokenizer(str(short))
    load_scorer(str(short), tokenizer, dtype="float32").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("flag", ["--model", "--ref_model", "--reward"])
@pytest.mark.parametrize("dry", [False, True])
def test_field_23_prompts_and_responses_need_positions_too(tmp_path, short, flag, dry):
    """A reward model of the policy's tokens starts the critic, which cuts no prompt."""
    model = classifier(tmp_path / "reward", short) if flag == "--reward" else short
    flags = ["--max_new_tokens", 10, *["--dry_run"] * dry]
    done = run("--loss", "ppo", flag, model, *flags, before=no_model, cwd=tmp_path)
    assert done.code == errors.USAGE
    assert done.line.startswith("--max_new_tokens 10: the longest prompt has ")
    assert done.line.endswith(f"{flag} {model} takes 16; lower it, or --max_length")


@pytest.mark.parametrize("new, fits", [(4, True), (5, False)])
def test_field_23_the_response_counts_to_the_last_token(short, new, fits):
    if fits:
        return check_room(12, new, str(short), "--model")
    with pytest.raises(InputError, match="the longest prompt has 12 tokens .* takes 16; lower it"):
        check_room(12, new, str(short), "--model")


def test_field_23_a_reward_model_cuts_texts_to_its_positions(tmp_path, short):
    tokenizer = load_tokenizer(str(short))
    short = classifier(tmp_path / "judge", short)
    cpu, limits = torch.device("cpu"), {"dtype": "float32", "max_length": 1024}
    reward = load_reward_model(str(short), tokenizer, device=cpu, **limits)
    assert reward.max_length == 16
    limits["max_length"] = 12
    assert load_reward_model(str(short), tokenizer, device=cpu, **limits).max_length == 12
    del limits["max_length"]
    assert load_reward_model(str(short), tokenizer, device=cpu, **limits).max_length == 16
