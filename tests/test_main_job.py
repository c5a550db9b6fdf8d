"""The main job does what it is for, on three seeds: minutes, so behind a marker.

python -m pytest -m slow tests/test_main_job.py
"""

import json
import statistics

import pytest
from runs import run

SEEDS = range(3)
# What the bare command must bring on pocket's held-out rows, as the mean of three seeds.
RISES = {"sft": 0.15, "dpo": 0.15, "orpo": 0.15, "simpo": 0.15}
REWARD_ACCURACY = 0.90
PPO_RISE = 0.25


@pytest.fixture(scope="module")
def summaries(tmp_path_factory):
    """loss -> the summaries of its three runs, made on first use."""
    made = {}

    def of(loss):
        if loss not in made:
            made[loss] = []
            for seed in SEEDS:
                out = tmp_path_factory.mktemp(f"{loss}-{seed}")
                assert run("--loss", loss, "--seed", seed, "--output_dir", out).code == 0
                made[loss].append(json.loads((out / "summary.json").read_text("utf-8")))
        return made[loss]

    return of


def mean(summaries, when, name):
    return statistics.fmean(summary[when][name] for summary in summaries)


@pytest.mark.slow
@pytest.mark.parametrize("loss", RISES)
def test_held_out_accuracy_rises(summaries, loss):
    found = summaries(loss)
    assert mean(found, "after", "accuracy") - mean(found, "before", "accuracy") >= RISES[loss]
    assert all(summary["after"]["loss"] < summary["before"]["loss"] for summary in found)


@pytest.mark.slow
def test_the_reward_model_is_right_on_held_out_pairs(summaries):
    assert all(s["after"]["accuracy"] >= REWARD_ACCURACY for s in summaries("reward"))


@pytest.mark.slow
def test_ppo_raises_the_exact_graders_success_rate(summaries):
    found = summaries("ppo")
    assert mean(found, "after", "success") - mean(found, "before", "success") >= PPO_RISE
    assert all(summary["after"]["kl"] > 0 for summary in found)
