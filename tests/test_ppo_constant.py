"""--loss ppo with a policy whose every answer can be worked out, and a rate at which nothing moves:
the first values, the held-out KL, and that every evaluation asks the same."""

import json
from math import log

import pytest
import torch
from constant_models import log_ratio, make_constant
from ppo_runs import starter
from runs import metrics
from tolerances import loose

LOOSE = loose(torch.float32)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """(policy, reference, run directory). Every response scores 3; with γ = λ = 1 and no KL in the
    reward, 3 is the return of every token."""
    folder = tmp_path_factory.mktemp("constant")
    policy = make_constant(folder / "policy", log(200.0))
    reference = make_constant(folder / "reference", 0.0)
    (folder / "rewards.py").write_text("def three(prompts, responses): return [3.0] * len(prompts)")
    flags = ["--model", folder / "policy", "--ref_model", folder / "reference"]
    flags += ["--reward", "rewards:three", "--kl_coef", 0, "--kl_loss_coef", 0.1]
    flags += ["--gamma", 1, "--lam", 1, "--max_new_tokens", 8, "--learning_rate", 1e-30]
    flags += ["--rollout_size", 8, "--batch_size", 4, "--ppo_epochs", 1, "--max_steps", 4]
    out, _ = starter(tmp_path_factory)(*flags, "--eval_every", 1, cwd=folder)
    return policy, reference, out


def test_a_new_critics_values_are_0(ran):
    """Its head starts at 0 (N+, detail 2.2): ½ (0 - 3)² is the value loss of every token."""
    steps, _ = metrics(ran[2])
    assert [row["loss/value_avg"] for row in steps] == pytest.approx([4.5] * 4, rel=LOOSE)


def test_kl_is_log_policy_minus_log_reference_summed_over_a_response(ran):
    """Of the held-out answers and of both rollouts, the end token counted."""
    policy, reference, out = ran
    steps, evaluations = metrics(out)
    found = [(e["eval/response_length"], e["eval/truncated"], e["eval/kl"]) for e in evaluations]
    names = ("rollout/response_length", "rollout/truncated", "objective/kl")
    found += [tuple(s[name] for name in names) for s in steps if "objective/kl" in s]
    assert len(found) == 5 + 2
    for length, truncated, kl in found:
        expected = log_ratio(policy, reference, length, 1 - truncated)
        assert 0 < truncated < 1 and kl == pytest.approx(expected, rel=10 * LOOSE)


def test_every_evaluation_draws_with_the_same_numbers(ran):
    """The weights are the same, so the answers are."""
    _, evaluations = metrics(ran[2])
    assert [e.pop("step") for e in evaluations] == [0, 1, 2, 3, 4]
    assert all(e == evaluations[0] for e in evaluations)
    lines = (ran[2] / "samples.jsonl").read_text("utf-8").splitlines()
    samples = [json.loads(line) for line in lines]
    steps = {sample.pop("step") for sample in samples}
    assert steps == {0, 1, 2, 3, 4} and samples == samples[:5] * 5
    assert len({sample["response"] for sample in samples}) == 5
