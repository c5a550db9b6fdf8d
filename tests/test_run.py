"""What a run leaves, that it is the same every time, and what its options change and do not."""

import math

import pytest
import torch
from PIL import Image
from runs import QUICK, metrics, pocket_rows, read, run, timeless, weights, write_rows
from safetensors import safe_open
from safetensors.torch import save_file
from tolerances import loose
from transformers import AutoModelForCausalLM, AutoTokenizer

import train
from data.batches import step_rows

TRAIN, HELDOUT = pocket_rows()
LOOSE = loose(torch.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("data"), TRAIN, HELDOUT)


@pytest.fixture(scope="module")
def go(data, tmp_path_factory):
    """Run a loss for three steps on 48 rows of pocket; returns the run directory."""

    def start(loss, *flags, out=None, **options):
        out = out or tmp_path_factory.mktemp(loss) / "out"
        done = run("--loss", loss, "--data", data, "--output_dir", out, *QUICK, *flags, **options)
        assert done.code == 0 and done.err == "", done.err
        return out

    return start


@pytest.fixture(scope="module")
def sft(go):
    return go("sft", draw=True)


@pytest.fixture(scope="module")
def dpo(go):
    return go("dpo", draw=True)


@pytest.fixture(params=["sft", "dpo"])
def out(request):
    return request.getfixturevalue(request.param)


# ---------------------------------------------------------------- what a run leaves


def test_metrics_have_one_line_a_step_and_the_held_out_rows_before_and_after(out):
    steps, heldout = metrics(out)
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert [row["step"] for row in heldout] == [0, 3]
    for row in steps:
        assert {"loss", "epoch", "grad_norm", "learning_rate", "seconds"} <= set(row)
        assert not any(key.startswith("eval/") for key in row)
    for row in heldout:
        assert {"step", "eval/loss", "eval/accuracy", "eval/accuracy_norm"} <= set(row)


def test_the_summary_says_before_and_after_and_what_it_took(out):
    summary, (steps, heldout) = read(out, "summary.json"), metrics(out)
    for name, row in zip(("before", "after"), heldout, strict=True):
        assert summary[name] == {k[5:]: v for k, v in row.items() if k.startswith("eval/")}
        assert {"loss", "accuracy", "accuracy_norm"} <= set(summary[name])
    assert summary["steps"] == 3 and summary["rows"] == 24
    assert summary["seconds"] >= steps[-1]["seconds"] > 0
    assert set(summary["versions"]) >= {"torch", "transformers", "accelerate", "datasets"}
    tokenizer = AutoTokenizer.from_pretrained(out / "final")
    taken = [TRAIN[i] for step in (1, 2, 3) for i in step_rows(step, len(TRAIN), 8, seed=0)]
    sides = ("chosen", "rejected")[: 1 + (summary["loss"] == "dpo")]
    texts = [row[side] for row in taken for side in sides]
    assert summary["tokens"] == sum(len(ids) + 1 for ids in tokenizer(texts)["input_ids"])


def test_config_and_status_say_how_it_was_made_and_how_it_ended(out):
    config, status = read(out, "config.json"), read(out, "status.json")
    assert config["train"]["batch_size"] == 8 and config["train"]["learning_rate"] == 1e-3
    assert config["train"]["output_dir"] == str(out) and config["train"]["seed"] == 0
    assert config["origin"]["batch_size"] == "command line"
    assert config["command"].startswith("python train.py --loss ") and config["steps"] == 3
    assert (status["state"], status["exit_code"]) == ("finished", 0)
    left = {file.name for file in out.iterdir()} - {"reference.safetensors"}
    assert left == {"config.json", "status.json", "metrics.jsonl", "summary.json", "curves.png",
                    "run.json", "run.lock", "final"}  # fmt: skip


def test_the_curves_are_a_picture(out):
    with Image.open(out / "curves.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert 800 <= picture.width <= 2000 and 300 <= picture.height <= 2000
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 100


def test_the_model_card_is_one_the_hub_reads(out):
    from huggingface_hub import ModelCard

    card = ModelCard.load(out / "final" / "README.md")
    loss = read(out, "summary.json")["loss"]
    assert card.data.library_name == "transformers" and loss in card.data.tags
    assert f"`{loss}` loss" in card.text and "held-out accuracy" in card.text
    assert "- Settings: `3 steps of 8, learning rate 0.001 " in card.text
    assert "- Data: `train: 48 rows of " in card.text and "train.py" not in card.text


# ---------------------------------------------------------------- the numbers are the model's


def logps_by_hand(folder, rows):
    """[(log-prob of every token of the response, end token last, text length)] a response."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    scored = []
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        for side in ("chosen", "rejected"):
            ids = torch.tensor(tokenizer(row["prompt"] + row[side])["input_ids"])
            ids = torch.cat([ids, torch.tensor([tokenizer.eos_token_id])])
            with torch.no_grad():
                logps = model(ids[None]).logits[0].log_softmax(-1)
            own = logps[torch.arange(len(prompt), len(ids)) - 1, ids[len(prompt) :]]
            scored.append((own, len(row[side].strip())))
    return scored


def share(wins):
    return sum(wins) / len(wins)


def test_final_is_the_model_that_the_summary_describes(out):
    after = read(out, "summary.json")["after"]
    scored = logps_by_hand(out / "final", HELDOUT)
    text = torch.tensor([float(own[:-1].sum()) for own, _ in scored])
    per_character = text / torch.tensor([length for _, length in scored])
    assert after["accuracy"] == share((text[0::2] > text[1::2]).tolist())
    assert after["accuracy_norm"] == share((per_character[0::2] > per_character[1::2]).tolist())
    if "logps/chosen" in after:
        chosen = torch.stack([own.sum() for own, _ in scored[0::2]]).mean().item()
        assert after["logps/chosen"] == pytest.approx(chosen, rel=LOOSE)
    else:
        loss = -torch.cat([own for own, _ in scored[0::2]]).mean().item()
        assert after["loss"] == pytest.approx(loss, rel=LOOSE)


def test_a_run_started_from_final_begins_where_this_one_ended(go, sft, dpo):
    again = go("sft", "--model", sft / "final")
    assert read(again, "summary.json")["before"] == read(sft, "summary.json")["after"]
    again = go("dpo", "--model", dpo / "final", "--ref_model", "pocket")
    assert read(again, "summary.json")["before"] == read(dpo, "summary.json")["after"]


def test_dpo_begins_at_ln_2(dpo):
    steps, heldout = metrics(dpo)
    assert abs(steps[0]["loss"] - math.log(2)) < 1e-6
    assert abs(heldout[0]["eval/loss"] - math.log(2)) < 1e-6
    assert abs(heldout[0]["eval/rewards/margins"]) < 1e-6
    assert steps[1]["loss"] != steps[0]["loss"]


def test_the_first_loss_against_another_reference_is_the_one_by_hand(go, dpo):
    from data.pocket import BASE_DIR

    out = go("dpo", "--ref_model", dpo / "final", "--max_steps", 1)
    rows = [TRAIN[i] for i in step_rows(1, len(TRAIN), 8, seed=0)]
    policy, ref = (
        torch.stack([own.sum() for own, _ in logps_by_hand(folder, rows)])
        for folder in (BASE_DIR, dpo / "final")
    )
    h = (policy - ref)[0::2] - (policy - ref)[1::2]
    by_hand = -torch.nn.functional.logsigmoid(0.1 * h).mean().item()
    loss = metrics(out)[0][0]["loss"]
    assert abs(by_hand - math.log(2)) > 1e-3
    assert loss == pytest.approx(by_hand, rel=LOOSE)


# ---------------------------------------------------------------- the same, every time


def test_the_same_command_gives_the_same_bytes(go, out):
    again = go(read(out, "summary.json")["loss"])
    assert timeless(again) == timeless(out)
    assert weights(again) == weights(out)


def test_evaluating_often_does_not_change_the_model(go, dpo):
    often = go("dpo", "--eval_every", 1)
    assert [row["step"] for row in metrics(often)[1]] == [0, 1, 2, 3]
    assert weights(often) == weights(dpo)


def test_another_seed_is_another_order(go, sft):
    other = go("sft", "--seed", 1)
    assert [r["loss"] for r in metrics(other)[0]] != [r["loss"] for r in metrics(sft)[0]]
    assert metrics(other)[1][0] == metrics(sft)[1][0]


def test_the_global_random_state_plays_no_part(go, dpo):
    assert weights(go("dpo", before=draw_random_numbers)) == weights(dpo)


def draw_random_numbers():
    real = train.optimizer_step

    def step(*args):
        torch.rand(3)
        return real(*args)

    train.optimizer_step = step


# ---------------------------------------------------------------- the reference is kept


def no_reference():
    import runtime.sources.reference

    def compute(*_, **__):
        raise AssertionError("the reference was computed")

    runtime.sources.reference.reference_logps = compute


def test_kept_reference_log_probs_are_used_again(go, dpo):
    before = timeless(dpo), weights(dpo)
    go("dpo", "--overwrite", out=dpo, before=no_reference, draw=True)
    assert (timeless(dpo), weights(dpo)) == before


@pytest.mark.parametrize("change", ["model", "data", "precision", "reference"])
def test_kept_reference_log_probs_of_something_else_are_not(tmp_path, dpo, change):
    out = tmp_path / "out"
    out.mkdir()
    (out / "reference.safetensors").write_bytes((dpo / "reference.safetensors").read_bytes())
    rows = [row | {"chosen": row["chosen"] + "."} for row in TRAIN] if change == "data" else TRAIN
    flags = {
        "model": ["--model", dpo / "final"],
        "precision": ["--mixed_precision", "bf16"],
        "reference": ["--ref_model", dpo / "final"],
    }
    data = ["--data", write_rows(tmp_path / "data", rows, HELDOUT), *flags.get(change, [])]
    done = run("--loss", "dpo", "--output_dir", out, *QUICK, *data, before=no_reference)
    assert done.code == 1 and "the reference was computed" in done.err


def spoiled(path, whole, how):
    """A kept reference file that is not what was written."""
    if how == "torn":
        path.write_bytes(whole[:100])
    elif how == "one bit":  # of the last number: it loads without an error
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    else:
        with safe_open(path.parent / "whole", framework="pt") as file:
            about = file.metadata()
            kept = {name: file.get_tensor(name) for name in file.keys()}
        kept["0"] = kept["0"][1:] if how == "shorter" else kept["0"] * float("nan")
        save_file(kept, path, metadata=about)


@pytest.mark.parametrize("how", ["torn", "one bit", "shorter", "not a number"])
def test_a_spoiled_reference_file_is_said_and_made_again(dpo, data, tmp_path, how):
    whole = (dpo / "reference.safetensors").read_bytes()
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "out" / "whole").write_bytes(whole)
    spoiled(out / "reference.safetensors", whole, how)
    (out / "whole").unlink()
    done = run("--loss", "dpo", "--data", data, "--output_dir", out, *QUICK)
    assert done.code == 0, done.err
    assert sum("reference.safetensors" in line for line in done.out.splitlines()) == 1
    assert (out / "reference.safetensors").read_bytes() == whole and weights(out) == weights(dpo)
