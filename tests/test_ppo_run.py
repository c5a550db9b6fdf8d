"""PPO as a user runs it: what a run prints, and what it leaves behind."""

import json
import math

import pytest
import torch
from ppo_runs import QUICK, starter
from rollouts import RATIO
from runs import BASE, metrics, read, timeless, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from data.pocket import grade, heldout_prompts

PLAIN = {  # TRL's names, where it has one
    *("loss", "loss/policy_avg", "loss/value_avg", "policy/approxkl_avg", "policy/clipfrac_avg"),
    *("val/clipfrac_avg", "val/ratio", "val/ratio_var", "grad_norm", "learning_rate", "tokens"),
}
OF_A_ROLLOUT = {
    *("objective/kl", "objective/entropy", "objective/non_score_reward", "objective/scores"),
    *("objective/rlhf_reward", "objective/kl_coef", "val/num_eos_tokens", "rollout/truncated"),
    "rollout/response_length",
}


@pytest.fixture(scope="module")
def go(tmp_path_factory):
    return starter(tmp_path_factory)


@pytest.fixture(scope="module")
def plain(go):
    return go(*QUICK, "--eval_every", 2, "--entropy_coef", 0.01)


# --- what a run leaves ---------------------------------------------------------------------------


def test_the_planned_steps_are_those_that_ran(plain):
    """F13, F14."""
    out, told = plain
    assert (
        "plan: 1 rollouts of 8 responses, 4 epochs over each in steps of 4: 4 optimizer steps"
        in (told)
    )
    assert [row["step"] for row in metrics(out)[0]] == [1, 2, 3, 4]
    assert read(out, "summary.json")["steps"] == read(out, "config.json")["steps"] == 4


def test_metrics_have_their_names(plain):
    steps, evaluations = metrics(plain[0])
    for row in steps:
        assert row.keys() >= PLAIN | {"policy/entropy_avg"}
        assert (row.keys() >= OF_A_ROLLOUT) == (row["step"] == 1)  # said once a rollout
        assert 0 < row["policy/entropy_avg"] < math.log(2000)
    first = steps[0]
    assert first["objective/kl"] == 0 and first["val/ratio"] == pytest.approx(1, abs=RATIO)
    assert first["objective/non_score_reward"] == 0 and first["objective/kl_coef"] == 0.05
    assert first["objective/entropy"] > 0 and first["learning_rate"] > 0
    variances = [row["val/ratio_var"] for row in steps]
    assert variances[0] < RATIO**2 < max(variances[1:])
    assert [row["step"] for row in evaluations] == [0, 2, 4]


def test_the_summary_compares_before_and_after(plain):
    out, told = plain
    summary, evaluations = read(out, "summary.json"), metrics(out)[1]
    for name, row in (("before", evaluations[0]), ("after", evaluations[-1])):
        values = summary[name]
        assert values.keys() == {"reward", "kl", "response_length", "success", "truncated"}
        assert {f"eval/{key}": value for key, value in values.items()} | {
            "step": row["step"]
        } == row
        assert values["success"] == values["reward"]  # pocket's grader is the reward here
        assert 0 <= values["success"] <= 1 and 1 <= values["response_length"] <= 16
    assert summary["before"]["kl"] == 0 != summary["after"]["kl"]
    assert "right answers among them" in told and "KL to the start" in told


def test_a_few_samples_are_kept_of_every_evaluation(plain):
    rows = [json.loads(line) for line in (plain[0] / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0] * 5 + [2] * 5 + [4] * 5
    for row in rows:
        assert row.keys() == {"step", "prompt", "response", "score"}
        assert row["prompt"] in heldout_prompts()
        assert row["score"] == grade(row["prompt"], row["response"])
    assert len({row["prompt"] for row in rows}) == 5  # the same prompts every time


def test_what_is_saved_is_the_policy_alone(plain):
    """J2: no wrapper, no critic; the first step has moved it (H10)."""
    final = plain[0] / "final"
    model, info = AutoModelForCausalLM.from_pretrained(final, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    base = AutoModelForCausalLM.from_pretrained(BASE)
    assert any(
        not torch.equal(a, b) for a, b in zip(model.parameters(), base.parameters(), strict=True)
    )
    prompt = AutoTokenizer.from_pretrained(final)(heldout_prompts()[0], return_tensors="pt")
    assert model.generate(**prompt, do_sample=False, max_new_tokens=4).shape[1] > 4


def test_the_same_command_gives_the_same_bytes(plain, go):
    again, _ = go(*QUICK, "--eval_every", 2, "--entropy_coef", 0.01)
    assert timeless(again) == timeless(plain[0]) and weights(again) == weights(plain[0])
    assert (again / "samples.jsonl").read_bytes() == (plain[0] / "samples.jsonl").read_bytes()


def test_a_rollout_left_early_still_ends_in_an_evaluation(go):
    """Fewer steps than planned: the last one is evaluated, and the summary is of that."""
    out, told = go(*QUICK, "--target_kl", 1e-9, "--max_steps", 16)
    assert ": 16 optimizer steps" in told
    steps, evaluations = metrics(out)
    assert len(steps) == 4  # two rollouts, each left after the second step
    assert [row["step"] for row in evaluations] == [0, 4]
    summary = read(out, "summary.json")
    assert summary["steps"] == 4 and summary["after"]["kl"] == evaluations[-1]["eval/kl"] != 0
    assert read(out, "status.json")["state"] == "finished" and (out / "final").exists()


def test_the_critic_learns_at_a_rate_of_its_own(go):
    """Four steps on the same eight responses: its error falls, and the policy stands still."""
    flags = ("--max_steps", 4, "--rollout_size", 8, "--batch_size", 8, "--warmup", 0)
    rates = ("--learning_rate", 1e-12, "--critic_learning_rate", 3e-4, "--max_new_tokens", 16)
    out, _ = go(*flags, *rates, "--schedule", "constant", "--value_clip", 100)
    steps, _ = metrics(out)
    errors = [step["loss/value_avg"] for step in steps]
    assert errors[-1] < 0.9 * errors[0]
    assert [step["learning_rate"] for step in steps] == [1e-12] * 4
    base, final = (AutoModelForCausalLM.from_pretrained(x) for x in (BASE, out / "final"))
    pairs = zip(base.parameters(), final.parameters(), strict=True)
    assert all((a - b).abs().max() < 1e-9 for a, b in pairs)
