"""PPO and what it is given: references, rewards and prompts, good ones and bad."""

import json

import pytest
import torch
from datafiles import USER, lines, write
from ppo_runs import QUICK, few_samples, starter
from runs import BASE, copy_base, metrics, no_model, random_llama, read, run
from small_tokenizers import chatml
from tiny_models import make_head
from transformers import AutoModelForCausalLM

from data import errors


@pytest.fixture(scope="module")
def go(tmp_path_factory):
    return starter(tmp_path_factory)


def no_reference():
    few_samples()
    from runtime.sources import prompts as source

    real, loaded = source.load_causal_lm, []

    def load(*args, **options):
        loaded.append(args)
        assert len(loaded) == 1, "a second model was loaded"
        return real(*args, **options)

    source.load_causal_lm = load


# --- references ----------------------------------------------------------------------------------


def test_without_a_kl_no_reference_is_loaded_and_no_kl_is_told(go):
    """H7: both coefficients 0."""
    out, told = go(*QUICK, "--kl_coef", 0, before=no_reference)
    summary, (steps, _) = read(out, "summary.json"), metrics(out)
    assert "kl" not in summary["before"] and "kl" not in summary["after"]
    assert "objective/kl" not in steps[0] and "KL" not in told


def test_another_reference_is_another_kl_at_once(go, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(BASE)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(2)
    model.save_pretrained(copy_base(tmp_path / "other"))
    out, _ = go(*QUICK, "--max_steps", 1, "--ref_model", tmp_path / "other")
    assert read(out, "summary.json")["before"]["kl"] > 0
    assert metrics(out)[0][0]["objective/non_score_reward"] < 0


def spoiled_reference():
    """Not the model that is trained, though nothing else was asked for."""
    few_samples()
    from runtime.sources import prompts as source

    real = source.load_causal_lm

    def load(*args, flag="--model", **options):
        model = real(*args, flag=flag, **options)
        if flag == "--ref_model":
            model.get_input_embeddings().weight.data.mul_(1.01)
        return model

    source.load_causal_lm = load


def test_a_kl_before_the_first_update_stops_the_run(tmp_path):
    flags = [*QUICK, "--output_dir", tmp_path / "out"]
    done = run("--loss", "ppo", *flags, before=spoiled_reference)
    assert done.code == errors.BAD_DATA and done.line.startswith("self-check: held-out kl is ")


def test_a_reference_of_another_vocabulary_is_refused(tmp_path):
    other = random_llama(tmp_path / "other", chatml())
    flags = [*QUICK, "--ref_model", other, "--output_dir", tmp_path / "out"]
    done = run("--loss", "ppo", *flags, before=no_model)
    assert done.code == errors.USAGE
    assert done.line.startswith(f"--ref_model {other}: its vocabulary is another one (token ")


# --- rewards -------------------------------------------------------------------------------------

REWARDS = """
import numpy
def brevity(prompts, responses): return [-len(text) / 10 for text in responses]
def raises(prompts, responses): return [1 / responses[i].find(" ") for i in range(len(prompts))]
def nan(prompts, responses): return numpy.where(numpy.arange(len(prompts)) == 3, numpy.nan, 0.5)
def short(prompts, responses): return [1.0]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("rewards"), {"my_rewards.py": REWARDS})


def test_a_reward_function_in_the_current_directory(go, folder):
    out, told = go(*QUICK, "--reward", "my_rewards:brevity", "--kl_loss_coef", 0.1, cwd=folder)
    assert "reward my_rewards:brevity" in told
    before = read(out, "summary.json")["before"]
    assert before["reward"] < 0 <= before["success"]  # pocket's questions: graded all the same
    row = json.loads((out / "samples.jsonl").read_text().splitlines()[0])
    assert row["score"] == -len(row["response"]) / 10


@pytest.mark.parametrize(
    "name, reason",
    [
        ("raises", "row 1 (prompt 'Question: .*: it raises ZeroDivisionError: division by zero"),
        ("nan", "row 4 (prompt 'Question: .*: its score nan is not finite in float32"),
        ("short", "rows 1 to 24 (prompt 'Question: .*: it returns 1 scores for 24 rows"),
    ],
)
def test_a_reward_that_fails_ends_the_run_in_one_line(folder, tmp_path, name, reason):
    flags = [*QUICK, "--reward", f"my_rewards:{name}", "--output_dir", tmp_path / "out"]
    done = run("--loss", "ppo", *flags, cwd=folder, before=few_samples)
    start, end = reason.split(".*")
    assert done.code == errors.BAD_DATA
    assert done.line.startswith(f"reward my_rewards:{name}, {start}") and done.line.endswith(end)
    assert not (tmp_path / "out" / "final").exists()


def test_a_trained_reward_model_scores_and_starts_the_critic(go):
    trained, _ = go("--max_steps", 3, loss="reward", before=None)
    out, told = go(*QUICK, "--reward", trained / "final")
    assert f"reward {trained / 'final'}; critic from {trained / 'final'}" in told
    before = read(out, "summary.json")["before"]
    assert before["reward"] != before["success"]


def test_a_reward_model_of_another_vocabulary_scores_but_starts_no_critic(go, tmp_path):
    """It is given texts, and the critic the policy's tokens."""
    other = random_llama(tmp_path / "other", chatml())
    model = make_head("sequence", "llama", torch.float32, vocab_size=len(chatml()))
    model.save_pretrained(other)
    chatml().save_pretrained(other)
    _, told = go(*QUICK, "--max_steps", 1, "--reward", other)
    assert f"reward {other}; critic from pocket" in told


def once():
    """A tokenizer is read once of each directory."""
    few_samples()
    from runtime.sources import prompts as source

    real, seen = source.load_tokenizer, []

    def load(name, *args, **options):
        assert name not in seen, f"the tokenizer of {name} was loaded again"
        seen.append(name)
        return real(name, *args, **options)

    source.load_tokenizer = load


def test_a_critic_that_refuses_trees_gets_the_rectangle_and_so_does_the_policy(go, tmp_path):
    """A reward model of another family, with the policy's vocabulary."""
    shape = dict(vocab_size=2000, pad_token_id=0, n_layer=2, n_head=4)
    copy_base(tmp_path / "other")  # for its tokenizer
    (tmp_path / "other" / "model.safetensors").unlink()
    make_head("sequence", "bloom", torch.float32, **shape).save_pretrained(tmp_path / "other")
    out, told = go(*QUICK, "--reward", tmp_path / "other", before=once)
    assert f"critic from {tmp_path / 'other'}" in told
    assert "padded rectangle, no token trees (ValueError" in told and ", because of the cri" in told
    assert read(out, "config.json")["layout"] == "rectangle"
    ratios = [row["val/ratio"] for row in metrics(out)[0]]
    assert abs(ratios[0] - 1) < 1e-5


def test_other_ends_of_the_generation_config_are_told_and_by_a_flag_obeyed(go, tmp_path):
    """F4, F8: a Gemma's <end_of_turn>, say; here the full stop, with which pocket's answers end."""
    copy_base(tmp_path / "other")
    stop = json.loads((BASE / "tokenizer.json").read_text())["model"]["vocab"]["."]
    file = tmp_path / "other" / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": [0, stop]}))
    plain, told = go(*QUICK, "--model", tmp_path / "other")
    assert "; generate() would also stop at ., ppo by --stop_tokens" in told
    out, told = go(*QUICK, "--model", tmp_path / "other", "--stop_tokens", ".")
    assert "generate()" not in told
    texts, others = (
        [json.loads(row)["response"] for row in (run / "samples.jsonl").read_text().splitlines()]
        for run in (plain, out)
    )
    assert any("." in text for text in texts) and not any("." in text for text in others)


def test_elsewhere_a_reward_must_be_named(tmp_path):
    rows = write(tmp_path, {"train.jsonl": lines(*({"goal": f"do {i}"} for i in range(20)))})
    flags = [*QUICK, "--data", rows, "--output_dir", tmp_path / "out"]
    done = run("--loss", "ppo", *flags, before=no_model)
    assert done.code == errors.USAGE
    assert done.line == (
        "--reward is missing: train one with --loss reward on this data and give its final/"
        " directory, or name a function as module:function"
    )


# --- prompts -------------------------------------------------------------------------------------


def test_other_prompts_are_trained_on(go, folder, tmp_path):
    rows = [{"goal": f"carry {i} to the table"} for i in range(30)]
    prompts = write(tmp_path, {"tests.jsonl": lines(*rows)}) / "tests.jsonl"
    flags = ["--prompts", prompts, "--reward", "my_rewards:brevity", "--truncation", "bootstrap"]
    out, told = go(*QUICK, *flags, "--missing_eos_penalty", 1, cwd=folder)
    assert f"data: 27 prompts of {prompts}; 3 held out\n" in told
    assert "success" not in read(out, "summary.json")["before"]
    asked = [
        json.loads(line)["prompt"] for line in (out / "samples.jsonl").read_text().splitlines()
    ]
    assert all(p.startswith("Question: carry ") and p.endswith("\nAnswer:") for p in asked)


def test_messages_are_answered_through_the_chat_template(go, folder, tmp_path):
    model = random_llama(tmp_path / "model", chatml())
    rows = [{"prompt": [USER | {"content": f"hello {i}"}]} for i in range(20)]
    prompts = write(tmp_path, {"p.jsonl": lines(*rows)}) / "p.jsonl"
    flags = ["--model", model, "--prompts", prompts, "--reward", "my_rewards:brevity"]
    out, _ = go(*QUICK, *flags, "--learning_rate", 1e-3, cwd=folder)
    sample = json.loads((out / "samples.jsonl").read_text().splitlines()[0])
    assert sample["prompt"] in [row["prompt"] for row in rows]  # messages as they were given
    assert (out / "final" / "chat_template.jinja").exists()


def test_prompts_that_leave_no_room_are_counted_in_what_is_told(tmp_path):
    rows = [{"prompt": "soup " * (50 if i % 10 == 0 else 1) + str(i)} for i in range(40)]
    prompts = write(tmp_path, {"p.jsonl": lines(*rows)}) / "p.jsonl"
    flags = ["--prompts", prompts, "--reward", "math:dist", "--max_length", 40, "--dry_run"]
    done = run("--loss", "ppo", *QUICK, *flags, before=no_model)
    assert done.code == 0 and "4 prompts have no room in --max_length 40" in done.out


@pytest.mark.parametrize("row", [{"text": "hi"}, {"prompt": ""}])
def test_a_row_without_a_prompt_is_named(tmp_path, row):
    prompts = write(tmp_path, {"p.jsonl": lines({"prompt": "a"}, row)}) / "p.jsonl"
    done = run(
        "--loss", "ppo", *QUICK, "--prompts", prompts, "--reward", "math:dist", before=no_model
    )
    assert done.code == errors.BAD_DATA
    assert done.line.startswith(f"{prompts}:2:prompt: missing; give `prompt`, or PIQA's `goal`, or")


@pytest.mark.parametrize("value", ["drop", "truncate"])
def test_a_flag_that_nothing_reads_is_refused(tmp_path, value):
    done = run("--loss", "ppo", *QUICK, "--overlong", value, before=no_model, cwd=tmp_path)
    assert done.code == errors.USAGE and not list(tmp_path.iterdir())
    assert done.line == (
        "--overlong has no effect with --loss ppo: responses end at --max_new_tokens, and prompts"
        " are never cut"
    )


@pytest.mark.parametrize("loss", ["ppo", "dpo"])
def test_a_flag_of_conversations_is_refused_where_nothing_reads_it(tmp_path, loss):
    done = run("--loss", loss, "--train_on", "last", before=no_model, cwd=tmp_path)
    assert done.code == errors.USAGE and not list(tmp_path.iterdir())
    assert done.line == (
        f"--train_on has no effect with --loss {loss}: only conversations of --loss sft have"
        " several answers to choose from"
    )


def test_no_prompt_file_is_one_line(tmp_path):
    flags = [*QUICK, "--prompts", tmp_path / "none.jsonl", "--reward", "math:dist"]
    done = run("--loss", "ppo", *flags, before=no_model)
    assert done.code == errors.NO_INPUT and "none.jsonl" in done.line
