"""What the options of a run change, and what they must leave as it is; and how a run ends early."""

import math
import re

import pytest
import torch
from runs import (
    QUICK,
    metrics,
    no_model,
    pocket_rows,
    random_llama,
    read,
    run,
    timeless,
    weights,
    write_rows,
)
from small_tokenizers import chatml
from tolerances import loose

import train
from data import errors
from models.load import load_causal_lm
from runtime.config import TrainConfig

ROWS = pocket_rows()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("data"), *ROWS)


@pytest.fixture(scope="module")
def go(tmp_path_factory, data):
    """Run a loss; returns the run directory and what was printed."""

    def start(loss, *flags, **options):
        out = tmp_path_factory.mktemp(loss) / "out"
        flags = ["--data", data, "--output_dir", out, *QUICK, *flags]
        done = run("--loss", loss, *flags, **options)
        assert done.code == 0 and done.err == "", done.err
        return out, done.out

    return start


@pytest.fixture(scope="module")
def plain(go):
    """Three steps of DPO without any option."""
    return go("dpo")[0]


# ---------------------------------------------------------------- dry runs


def test_a_dry_run_shows_the_plan_and_two_examples_and_writes_nothing(tmp_path, data):
    flags = ["--data", data, "--output_dir", tmp_path / "out", "--batch_size", 8]
    done = run("--loss", "dpo", "--dry_run", "--max_steps", 12, *flags, cwd=tmp_path)
    assert done.code == 0 and done.err == ""
    assert "plan: 12 optimizer steps of 8 rows, 2.00 epochs" in done.out
    assert done.out.count("example ") == 2
    row = ROWS[0][0]
    assert f"    {row['prompt']!r}\n" in done.out
    shown = re.findall(r"^    \|(.*)\|$", done.out, re.M)
    texts = [row[side] for row in ROWS[0][:2] for side in ("chosen", "rejected")]
    assert [line.replace("|", "") for line in shown] == [f"{text}<endoftext>" for text in texts]
    assert not list(tmp_path.iterdir())


def test_a_dry_run_leaves_an_earlier_run_alone(plain, data):
    before = {file: file.read_bytes() for file in plain.rglob("*") if file.is_file()}
    flags = ("--loss", "sft", "--dry_run", "--data", data, "--output_dir", plain)
    assert run(*flags, "--overwrite").code == 0
    done = run(*flags)  # as the run itself would end
    assert done.code == errors.CANNOT_CREATE and "holds a finished run" in done.line
    assert {file: file.read_bytes() for file in plain.rglob("*") if file.is_file()} == before


# ---------------------------------------------------------------- the learning rate


def rates(steps, **options):
    config = TrainConfig(loss="sft", **options)
    return [train.learning_rate(step, steps, 2.0, config) for step in range(1, steps + 1)]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 0.1, 0.5, 3, 10, 50])
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_no_step_has_rate_0_and_the_peak_is_reached_then_left(schedule, warmup, steps):
    given = rates(steps, schedule=schedule, warmup=warmup)
    ramp = min(steps, round(warmup * steps) if warmup < 1 else warmup)
    assert all(0 < rate <= 2.0 for rate in given)
    assert given[:ramp] == sorted(given[:ramp])
    assert given[ramp:] == sorted(given[ramp:], reverse=True)
    assert given[ramp : ramp + 1] in ([2.0], [])
    assert len(set(given[:ramp])) == ramp


def test_schedules_have_their_shapes():
    assert rates(4, warmup=0, schedule="constant") == [2.0, 2.0, 2.0, 2.0]
    assert rates(4, warmup=0, schedule="linear") == [2.0, 1.5, 1.0, 0.5]
    assert rates(4, warmup=0, schedule="cosine")[2] == pytest.approx(1.0)
    assert rates(5, warmup=2, schedule="linear")[:3] == pytest.approx([2 / 3, 4 / 3, 2.0])


def test_the_rates_of_the_metrics_are_those_of_the_schedule(go):
    out, _ = go("sft", "--schedule", "cosine", "--warmup", 1)
    want = rates(3, schedule="cosine", warmup=1)
    assert [r["learning_rate"] for r in metrics(out)[0]] == pytest.approx([r / 2000 for r in want])


# ---------------------------------------------------------------- same numbers another way


def close(out, other, bound, keys=("loss", "grad_norm")):
    """The first step, before which both have the same weights, and the held-out loss after all."""
    (steps, heldout), (others, other_heldout) = metrics(out), metrics(other)
    for key in keys:
        assert steps[0][key] == pytest.approx(others[0][key], rel=bound), key
    assert heldout[0] == pytest.approx(other_heldout[0], rel=bound, abs=bound)
    return steps, others


def test_the_rectangle_gives_the_losses_of_the_tree(go, plain):
    out, told = go("dpo", "--layout", "rectangle")
    assert "padded rectangle, as asked" in told and read(out, "config.json")["layout"] != "tree"
    steps, others = close(out, plain, loose(torch.float32))
    assert [r["loss"] for r in steps] == pytest.approx([r["loss"] for r in others], rel=1e-3)


def count_layers():
    from transformers.models.llama.modeling_llama import LlamaMLP

    forward = LlamaMLP.forward

    def counted(*args, **options):
        print("layer", "with" if torch.is_grad_enabled() else "without", "gradient")
        return forward(*args, **options)

    LlamaMLP.forward = counted


def test_gradient_checkpointing_computes_layers_again_and_changes_no_bit(go):
    plain, told_plain = go("dpo", before=count_layers)
    out, told = go("dpo", "--gradient_checkpointing", before=count_layers)
    assert timeless(out) == timeless(plain) and weights(out) == weights(plain)
    once, twice = (text.count("layer with gradient") for text in (told_plain, told))
    assert twice == 2 * once > 0
    assert told.count("layer without gradient") == told_plain.count("layer without gradient")


def test_gradient_checkpointing_turns_no_dropout_on(tmp_path):
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    config = {"vocab_size": 50, "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 16}
    config |= {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
    OPTForCausalLM(OPTConfig(**config, dropout=0.5, layerdrop=0.5)).save_pretrained(tmp_path)
    ids = torch.arange(20)[None]
    model, checkpointed = (
        load_causal_lm(str(tmp_path), dtype="float32", gradient_checkpointing=on)
        for on in (False, True)
    )
    for _ in range(3):
        assert torch.equal(checkpointed(ids).logits, model(ids).logits)


def test_bf16_autocast_stays_near_float32(go, plain):
    out, _ = go("dpo", "--mixed_precision", "bf16")
    (steps, _), (exact, _) = metrics(out), metrics(plain)
    bound = loose(torch.bfloat16)
    assert [r["loss"] for r in steps] == pytest.approx([r["loss"] for r in exact], rel=bound)
    assert timeless(out) != timeless(plain)
    from safetensors import safe_open

    with safe_open(out / "final" / "model.safetensors", "pt") as saved:
        assert {saved.get_tensor(name).dtype for name in saved.keys()} == {torch.float32}


def test_a_step_in_many_micro_batches_is_the_same_step(go, plain):
    out, _ = go("dpo", "--max_tokens", 64)
    close(out, plain, loose(torch.float32))


def test_accumulation_of_the_launcher_s_own_does_not_divide_ours(go, plain):
    out, _ = go("dpo", env={"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"})
    assert timeless(out) == timeless(plain)


@pytest.mark.parametrize("env, flag, message", [
    ("bf16", "no", "accelerate launch was given bf16; give --mixed_precision bf16 to train.py too"),
    pytest.param("no", "fp16", "--mixed_precision fp16 needs a GPU; on a CPU take bf16",
                 marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")),
])  # fmt: skip
def test_a_precision_that_would_be_ignored_is_refused(tmp_path, env, flag, message):
    flags = ["--loss", "sft", "--mixed_precision", flag, "--output_dir", tmp_path / "out"]
    done = run(*flags, env={"ACCELERATE_MIXED_PRECISION": env}, before=no_model)
    assert (done.code, done.line) == (errors.USAGE, message)


def test_weights_are_trained_and_saved_in_float64_where_asked_for(go, plain):
    from safetensors import safe_open

    out, told = go("dpo", "--dtype", "float64")
    with safe_open(out / "final" / "model.safetensors", "pt") as saved:
        assert {saved.get_tensor(name).dtype for name in saved.keys()} == {torch.float64}
    losses = [[row["loss"] for row in metrics(folder)[0]] for folder in (out, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=100 * loose(torch.float32))
    assert losses[0] != losses[1] and "final/ (the model), metrics.jsonl" in told


# ---------------------------------------------------------------- other data


def test_prompt_and_completion_rows_train_sft_without_an_accuracy(go, tmp_path):
    rows = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in ROWS[0]]
    file = write_rows(tmp_path, rows, []) / "train.jsonl"
    out, told = go("sft", "--data", file)
    summary = read(out, "summary.json")
    assert summary["before"].keys() == {"loss"} and "accuracy" not in told
    assert summary["data"].endswith("held out: 4 random rows of the same, seed 0")
    assert summary["after"]["loss"] < summary["before"]["loss"]


def chat(row):
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return {k: [{"role": roles[k], "content": text.strip()}] for k, text in row.items()}


@pytest.mark.parametrize("loss", ["sft", "dpo"])
def test_messages_are_trained_on_through_the_chat_template(go, tmp_path, loss):
    model = random_llama(tmp_path / "model", chatml())
    rows = write_rows(tmp_path / "rows", *([chat(r) for r in part] for part in pocket_rows(16, 8)))
    out, _ = go(loss, "--data", rows, "--model", model)
    assert read(out, "status.json")["state"] == "finished"
    before, after = (read(out, "summary.json")[name]["loss"] for name in ("before", "after"))
    assert math.isfinite(after) and after != before
    assert (out / "final" / "chat_template.jinja").exists()


# ---------------------------------------------------------------- how a run ends early


def test_a_learning_rate_far_too_high_ends_in_one_line_and_saves_no_model(tmp_path, data):
    flags = ["--data", data, "--output_dir", tmp_path / "out", *QUICK, "--learning_rate", 1e10]
    for steps in (3, 12):
        done = run("--loss", "sft", *flags, "--max_steps", steps, "--overwrite")
        assert done.code == errors.NOT_FINITE and done.line.endswith("goes on from there")
        status = read(tmp_path / "out", "status.json")
        assert (status["state"], status["exit_code"]) == ("failed", 76)
        assert not (tmp_path / "out" / "final").exists()


def nan_gradient():
    """The second step of three, and only it, has a gradient that is not a number."""
    real = train.optimizer_step
    steps = []

    def step(accelerator, policy, *rest):
        result = real(accelerator, policy, *rest)
        steps.append(1)
        if len(steps) == 2:
            next(policy.parameters()).grad[0] = float("nan")
        return result

    train.optimizer_step = step


def test_one_step_that_is_not_finite_is_skipped_and_seen(go, plain):
    out, _ = go("dpo", before=nan_gradient)
    steps, _ = metrics(out)
    assert steps[1]["grad_norm"] is None and steps[2]["grad_norm"] > 0
    assert steps[1]["loss"] == metrics(plain)[0][1]["loss"]
    assert math.isfinite(read(out, "summary.json")["after"]["loss"])


def interrupt():
    def step(*_):
        raise KeyboardInterrupt

    train.optimizer_step = step


def test_ctrl_c_is_one_line_and_recorded(tmp_path, data):
    out = tmp_path / "out"
    done = run("--loss", "sft", "--data", data, "--output_dir", out, before=interrupt)
    assert done.code == errors.INTERRUPTED
    assert done.line == "stopped by Ctrl-C; nothing is saved, for no step was made"
    assert read(out, "status.json")["state"] == "stopped"
    assert metrics(out)[1][0]["step"] == 0
