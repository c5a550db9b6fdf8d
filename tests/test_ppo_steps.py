"""PPO's optimizer steps: how many, on what, and the same however the work is cut."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ranks import run_on_two_ranks
from rollouts import (
    SMALL,
    THROUGH_A_MODEL,
    left_behind,
    make_rollouts,
    near,
    prompts_of,
    train,
)
from tiny_models import relative_error

from data.batches import step_rows
from data.splits import Split
from losses.ppo import PPOConfig
from rollout.state import Experience, RolloutState
from rollout.steps import rollout_steps

EVERYTHING = PPOConfig(
    **dict(rollout_size=8, max_new_tokens=6, ppo_epochs=2, temperature=0.8, top_k=6),
    **dict(kl_estimator="k3", kl_target=0.1, kl_horizon=10, kl_loss_coef=0.1),
    **dict(score_norm=True, score_clip=1.0, missing_eos_penalty=0.5, truncation="bootstrap"),
    **dict(whiten_rewards=True, gamma=0.95, entropy_coef=0.01),
)
TRAININGS: dict[str, dict[str, Any]] = {
    "default": dict(config=SMALL),
    "every option": dict(config=EVERYTHING),
    "a rank without rows": dict(config=replace(SMALL, critic_warmup=1), batch_size=2),
    "left early": dict(config=replace(SMALL, target_kl=0.05)),
}
FIELDS = ("old_logps", "old_values", "advantages", "returns", "ref_logps")


@pytest.fixture(scope="module")
def plain():
    """Two rollouts of eight, two epochs over each in steps of four, at a rate that moves."""
    return train()


def by_row(run_step):
    """{row of the rollout: (batch, place in it)} over a step's micro-batches."""
    return {
        row: (batch, place)
        for batch in run_step.batches
        if not batch.dummy
        for place, row in enumerate(batch.index.tolist())
    }


# --- how many, and on what -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "epochs, batch_size, steps", [(1, 8, 1), (2, 4, 4), (4, 2, 16), (3, 1, 24)]
)
def test_a_rollout_makes_epochs_times_mini_batches_steps(epochs, batch_size, steps):
    """F12, F13, F14: every response of every rollout in every epoch, once."""
    config = replace(SMALL, ppo_epochs=epochs)
    run = train(config, batch_size=batch_size, steps=2 * steps, max_tokens=30)
    assert len(run.steps) == 2 * steps and len(run.rollouts) == 2
    seen = [sorted(by_row(each)) for each in run.steps]
    assert all(len(rows) == batch_size for rows in seen)
    per_epoch = 8 // batch_size
    for start in range(0, len(seen), per_epoch):
        assert sorted(sum(seen[start : start + per_epoch], [])) == list(range(8))
    for number, (rows, _) in enumerate(run.rollouts):
        tokens = sum(len(row.responses[0]) for row in rows)
        of_it = run.steps[number * steps : (number + 1) * steps]
        assert sum(each.units["tokens"] for each in of_it) == epochs * tokens
    if 1 < batch_size < 8:
        assert len({tuple(rows) for rows in seen[:steps]}) > per_epoch  # the epochs mix anew


@pytest.mark.parametrize("steps, rollouts", [(1, 1), (3, 1), (4, 1), (5, 2)])
def test_a_run_may_end_in_the_middle_of_a_rollout(steps, rollouts):
    """And samples no rollout that it does not train on."""
    run = train(steps=steps)
    assert (len(run.steps), len(run.rollouts)) == (steps, rollouts)


def test_every_rollout_goes_on_in_the_prompts_and_draws_anew():
    asked = [tuple(row.prompt) for rows, _ in train(prompts=16).rollouts for row in rows]
    assert sorted(asked) == sorted(tuple(prompt.tokens) for prompt in prompts_of(16))
    first, second = (rows for rows, _ in train(prompts=1, rate=0.0).rollouts)
    answers = [[row.responses[0] for row in rows] for rows in (first, second)]
    assert answers[0] != answers[1] and len(set(map(tuple, answers[0]))) > 4
    assert left_behind(train(seed=1))["responses"] != left_behind(train(seed=2))["responses"]


@pytest.mark.parametrize("made_before", [0, 2])
def test_prompts_are_those_of_the_seed_s_order(monkeypatch, made_before):
    """As rows are in the other losses: each prompt once an epoch."""
    prompts, _, _ = first_asked(monkeypatch, seed=5, made_before=made_before)
    texts = [prompt.text for prompt in prompts_of(12)]
    assert prompts == [texts[i] for i in step_rows(made_before + 1, 12, 8, seed=5)]


class Asked(Exception):
    """A rollout was asked for, with these prompts, numbers and seed."""


def first_asked(monkeypatch, *, seed, ranks=1, rank=0, made_before=0):
    def ask(rollouts, prompts, numbers, seed, state):
        raise Asked([prompt.text for prompt in prompts], numbers, seed)

    monkeypatch.setattr("rollout.steps.rollout", ask)
    accelerator = SimpleNamespace(num_processes=ranks, process_index=rank)
    made = replace(make_rollouts(), accelerator=accelerator)
    state = RolloutState(kl_coef=0.0, number=made_before)
    options = dict(batch_size=4, steps=1 + 4 * made_before, state=state)
    with pytest.raises(Asked) as error:
        next(rollout_steps(made, prompts_of(12), seed=seed, **options))
    return error.value.args


def test_a_rank_samples_its_share_of_the_prompts_by_the_numbers_they_have(monkeypatch):
    """E11: with one seed for all, so that a response does not depend on who samples it."""
    prompts, numbers, seed = first_asked(monkeypatch, seed=5)
    assert numbers == list(range(8)) and len(set(prompts)) > 4
    for rank in (0, 1):
        asked = first_asked(monkeypatch, seed=5, ranks=2, rank=rank)
        assert asked == (prompts[rank::2], numbers[rank::2], seed)


def test_another_seed_takes_other_prompts_and_draws_otherwise(monkeypatch):
    (prompts, _, seed), (others, _, another) = (first_asked(monkeypatch, seed=s) for s in (5, 6))
    assert prompts != others and seed != another


@pytest.mark.parametrize("truncation", ["terminal", "bootstrap"])
def test_no_micro_batch_is_above_max_tokens(truncation):
    """The place that a bootstrapped value is read at counts as a token."""
    config = replace(SMALL, truncation=truncation)
    full = 0
    for limit in range(20, 40):
        sizes = [
            batch.input_ids.numel()
            for each in train(config, batch_size=8, steps=1, max_tokens=limit).steps
            for batch in each.batches
        ]
        assert max(sizes) <= limit
        full += limit in sizes
    assert full  # one more token would not have gone in


def test_every_token_keeps_what_its_rollout_said_of_it(plain):
    """F9, F10, F11, F15: old log-probs, values and advantages, in whatever batch and epoch."""
    for number, each in enumerate(plain.steps):
        rows, columns = plain.rollouts[number // 4]
        for row, (batch, place) in by_row(each).items():
            length = len(rows[row].responses[0])
            assert batch.mask[place].tolist() == [t < length for t in range(batch.mask.shape[1])]
            assert batch.targets[batch.gather[place, :length]].tolist() == rows[row].responses[0]
            for field in FIELDS:
                kept = batch.columns[field][place, :length]
                assert torch.equal(kept, columns[field][row, :length])


def test_the_ratio_leaves_1_once_the_weights_have_moved(plain):
    """H13: and is 1 again at the first step of the next rollout, which the new weights sampled."""
    ratios = [each.metrics["val/ratio"] for each in plain.steps]
    changes = [each.metrics["policy/approxkl_avg"] for each in plain.steps]
    for first in (0, 4):
        assert ratios[first] == near(1)
        assert changes[first] < THROUGH_A_MODEL < min(changes[first + 1 : first + 4])
        assert all(abs(r - 1) > THROUGH_A_MODEL for r in ratios[first + 1 : first + 4])


def test_a_rollout_is_left_once_the_policy_has_moved_too_far(plain):
    """And the next one is sampled: nothing is made up for, nothing is skipped."""
    change = [each.metrics["policy/approxkl_avg"] for each in plain.steps]
    left = train(replace(SMALL, target_kl=change[1] / 2))
    assert len(left.rollouts) == 2 and len(left.steps) < len(plain.steps)
    assert left.steps[1].metrics == plain.steps[1].metrics  # the step that went too far is made
    assert [batch.index.tolist() for batch in left.steps[2].batches] != [
        batch.index.tolist() for batch in plain.steps[2].batches
    ]
    assert left.steps[2].metrics["val/ratio"] == near(1)
    for far_enough in (2 * max(change), max(change)):
        stayed = train(replace(SMALL, target_kl=far_enough))
        assert torch.equal(stayed.weights, plain.weights)


def test_batches_have_the_layout_that_the_models_take():
    for layout in ("tree", "rectangle"):
        batches = [batch for each in train(layout=layout, steps=2).steps for batch in each.batches]
        assert {batch.layout for batch in batches} == {layout}


def test_a_rank_without_a_row_in_a_step_gets_a_stand_in(monkeypatch):
    """And each of its rows once an epoch: here two ranks have one row each, a step is one row."""
    rows, columns = train(steps=1).rollouts[0]
    accelerator = SimpleNamespace(num_processes=2, process_index=0, device=torch.device("meta"))
    for rank in (0, 1):
        accelerator.process_index = rank
        mine = {name: column[[rank]] for name, column in columns.items()}
        experience = Experience(Split([rows[rank]], columns=mine), {})
        monkeypatch.setattr("rollout.steps.rollout", lambda *_, made=experience: made)
        made = replace(make_rollouts(replace(SMALL, rollout_size=2)), accelerator=accelerator)
        options = dict(batch_size=1, steps=4, seed=0, state=RolloutState(kl_coef=0.0))
        steps, device = rollout_steps(made, prompts_of(2), **options), accelerator.device
        batches = [batch for rows in steps for batch in rows.batches(made.max_tokens, device)]
        assert {batch.mask.device.type for batch in batches} == {"meta"}  # the rank's device
        dummies = [batch.dummy for batch in batches]
        for epoch in (dummies[:2], dummies[2:]):
            assert sorted(epoch) == [False, True]
            assert {type(dummy) for dummy in epoch} == {bool}


def test_in_its_warm_up_only_the_critic_learns(plain):
    config = replace(SMALL, critic_warmup=1, entropy_coef=0.1, kl_loss_coef=0.1)
    warm = train(config)
    size = sum(p.numel() for p in warm.module.policy.parameters())
    for number, each in enumerate(warm.steps):
        of_policy, of_critic = each.gradient[:size], each.gradient[size:]
        assert of_critic.norm() > 0
        assert bool((of_policy == 0).all()) == (number < 4)
    first, second = (columns["policy_weight"] for _, columns in warm.rollouts)
    assert first.tolist() == [0.0] * 8 and second.tolist() == [1.0] * 8
    untouched = train(config, steps=4).module.policy.state_dict()
    start = train(steps=1, rate=0.0).module.policy.state_dict()
    assert all(torch.equal(untouched[name], start[name]) for name in start)


# --- the same however it is cut ------------------------------------------------------------------


def flatten(x):
    if isinstance(x, dict):
        x = list(x.values())
    return [y for part in x for y in flatten(part)] if isinstance(x, list) else [float(x)]


def assert_same_training(found, whole, mine=slice(None)):
    """`found` is what a rank, or another cut, left behind; `mine` its responses of each rollout."""
    for name in ("responses", "ends"):
        assert found[name] == [rows[mine] for rows in whole[name]]
    assert found["units"] == whole["units"]
    for one, all_ in zip(found["columns"], whole["columns"], strict=True):
        for field in FIELDS:
            a, b = (torch.tensor(flatten(x)) for x in (one[field], all_[field][mine]))
            assert relative_error(a.double(), b.double()) < THROUGH_A_MODEL, field
    for name in ("told", "metrics"):
        for one, all_ in zip(found[name], whole[name], strict=True):
            assert one == near(all_)
    for one, all_ in zip(found["gradients"], whole["gradients"], strict=True):
        assert relative_error(one, all_) < THROUGH_A_MODEL
    assert relative_error(found["weights"], whole["weights"]) < THROUGH_A_MODEL
    for name in ("kl_coef", "moments"):
        assert flatten([found[name]]) == near(flatten([whole[name]]))


@pytest.fixture(scope="module")
def whole():
    return {name: left_behind(train(**training)) for name, training in TRAININGS.items()}


@pytest.mark.parametrize("options", [dict(max_tokens=1), dict(max_tokens=16, layout="rectangle")])
@pytest.mark.parametrize("name", TRAININGS)
def test_micro_batches_change_no_rollout_and_no_step(whole, name, options):
    """A7, A9, A10, H9, I2."""
    found = left_behind(train(**TRAININGS[name], **options))
    assert max(found["parts"]) > max(whole[name]["parts"]) == 1
    assert_same_training(found, whole[name])


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """What both ranks of a two-process run computed: tests/rank_rollout.py, started by torchrun."""
    out = tmp_path_factory.mktemp("ranks")
    run_on_two_ranks("rank_rollout.py", out)
    return out


@pytest.mark.parametrize("name", TRAININGS)
def test_two_ranks_sample_and_learn_what_one_process_does(two_ranks, whole, name):
    """E11, G10: prompts, responses, moments, whitening, gradients, the KL controller."""
    ranks = [torch.load(two_ranks / f"{name}-{rank}.pt", weights_only=True) for rank in range(2)]
    shares = list(zip(ranks[0]["rows"], ranks[1]["rows"], strict=True))
    assert {a + b for a, b in shares} == {TRAININGS[name].get("batch_size", 4)}
    assert any(a != b for a, b in shares)
    assert name != "a rank without rows" or any(0 in share for share in shares)
    for rank, found in enumerate(ranks):
        assert_same_training(found, whole[name], slice(rank, None, 2))
