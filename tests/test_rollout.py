"""A rollout: what it samples, what every token of it was worth, and what it says of itself."""

from copy import copy
from dataclasses import replace
from math import isfinite
from statistics import fmean, pvariance

import pytest
import small_tokenizers
import torch
from rollouts import (
    RATIO,
    SMALL,
    THROUGH_A_MODEL,
    PositionCritic,
    by_hand,
    make_policy,
    make_rollouts,
    near,
    prompts_of,
    ragged,
    shaped,
    train,
)
from tiny_models import make_head
from tolerances import TIGHT, loose

from data.errors import InputError
from data.row_table import Row
from losses.ppo import PPOConfig
from models.forward import head
from rollout import experience
from rollout.experience import rollout
from rollout.rewards import shape_scores, token_rewards, update_moments
from rollout.sample import Sampled, stop_ids
from rollout.state import RolloutState

BARE = replace(SMALL, whiten_advantages=False, kl_coef=0.0)


def roll(config=SMALL, count=16, state=None, number=0, **options):
    """(rollouts, rows, columns, metrics) of one rollout, the critic telling positions."""
    options = {"critic": PositionCritic(make_policy())} | options
    made = make_rollouts(config, **options)
    state = state or RolloutState(kl_coef=config.kl_coef)
    experience = rollout(made, prompts_of(count), range(count), number, state)
    return made, experience.split.rows, experience.split.columns, experience.metrics


def close(actual, expected, bound=THROUGH_A_MODEL):
    """Ragged lists of one shape, as vectors."""
    assert list(map(len, actual)) == list(map(len, expected))
    actual, expected = (torch.tensor(sum(x, []), dtype=torch.float64) for x in (actual, expected))
    assert ((actual - expected).norm() / expected.norm()).item() < bound


# --- before any update ---------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["tree", "rectangle"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_before_any_update_the_ratio_is_1_in_every_mini_batch(temperature, layout):
    """F1, F2, F5, I3: rate 0, all epochs of two rollouts; cut into other batches than looked at."""
    config = replace(SMALL, temperature=temperature, top_k=5)
    options = dict(reference=0, dtype=torch.float32, layout=layout, max_tokens=30)
    run = train(config, rate=0.0, **options)
    assert len(run.steps) == 8
    for step in run.steps:
        for batch in step.batches:
            log_ratio = run.module(batch).logps - batch.columns["old_logps"]
            assert (log_ratio[batch.mask].exp() - 1).abs().max() < RATIO
        told = step.metrics
        assert abs(told["val/ratio"] - 1) < RATIO and told["policy/clipfrac_avg"] == 0
        assert 0 <= told["policy/approxkl_avg"] < RATIO**2
    assert [told["objective/kl"] for told in run.told] == [0.0, 0.0]
    lengths = {len(row.responses[0]) for rows, _ in run.rollouts for row in rows}
    assert {1, config.max_new_tokens} <= lengths  # nothing is made to go on, or to end


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_of_the_sampler_are_those_of_the_training_forward(monkeypatch, temperature):
    """F1, F2: also with top-k, which decides only what is drawn (F3)."""
    sampled = []

    def recorded(*args, **options):
        sampled.extend(sample(*args, **options))
        return sampled

    sample = experience.sample
    monkeypatch.setattr(experience, "sample", recorded)
    config = replace(SMALL, temperature=temperature, top_k=4)
    made, rows, columns, _ = roll(config)
    old = ragged(rows, columns["old_logps"])
    close([one.logps for one in sampled], old)
    close(old, by_hand(made, rows, kl_coef=0.05).logps)


# --- what a token was worth ----------------------------------------------------------------------

GAE = {
    "default": {},
    "k2": dict(kl_estimator="k2"),
    "k3": dict(kl_estimator="k3", kl_coef=0.5),
    "without KL": dict(kl_coef=0.0),
    "discounted": dict(gamma=0.9, lam=0.8),
    "no bootstrapping at all": dict(gamma=1.0, lam=1.0),
    "one step": dict(lam=0.0),
    "a cut response goes on": dict(truncation="bootstrap", gamma=0.95),
    "a cut response is punished": dict(missing_eos_penalty=1.0),
    "clipped scores": dict(score_clip=0.25, missing_eos_penalty=1.0),
    "normalised scores": dict(score_norm=True),
    "normalised, then clipped": dict(score_norm=True, score_clip=1.0, missing_eos_penalty=0.5),
    "whitened rewards": dict(whiten_rewards=True),
    "whitened rewards, bootstrap": dict(whiten_rewards=True, truncation="bootstrap"),
    "at a temperature": dict(temperature=0.8, kl_coef=0.3),
}


@pytest.mark.parametrize("whiten", [False, True], ids=["bare", "whitened"])
@pytest.mark.parametrize("options", GAE.values(), ids=GAE)
def test_advantages_are_the_double_sum(options, whiten):
    """E12, G1, G2, G3, G4, G5, G8, G15: sampled, scored and looked back at, on ragged rows."""
    config = replace(SMALL, whiten_advantages=whiten, **options)
    made, rows, columns, _ = roll(config)
    assert {len(row.responses[0]) for row in rows} >= {1, 2, 6}
    assert {row.ends[0] for row in rows} == {True, False}
    assert all(row.ends[0] == (row.responses[0][-1] == 2) for row in rows)
    check(made, rows, columns)


@pytest.mark.parametrize("truncation", ["terminal", "bootstrap"])
def test_any_of_several_stop_tokens_is_an_end(truncation):
    """F8, G2: neither punished nor gone on from, and read by no reward."""
    config = replace(SMALL, truncation=truncation, missing_eos_penalty=1.0, stop_tokens="6,2,6")
    assert make_rollouts(config).sampling.stop_ids == (2, 6)  # the end token always, each once
    made, rows, columns, _ = roll(config)
    assert {row.responses[0][-1] for row in rows if row.ends[0]} == {2, 6}
    assert all(row.ends[0] == (row.responses[0][-1] in (2, 6)) for row in rows)
    check(made, rows, columns)


def check(made, rows, columns):
    """Against the double sum in plain Python."""
    config = made.config
    hand = by_hand(made, rows, kl_coef=config.kl_coef)
    assert 0.0 in hand.raw
    values = [[len(r.prompt) + t - 1 for t in range(len(r.responses[0]))] for r in rows]
    assert ragged(rows, columns["old_values"]) == values
    close(ragged(rows, columns["advantages"]), hand.advantages)
    close(ragged(rows, columns["returns"]), hand.returns)


@pytest.mark.parametrize("max_tokens", [1, 30])
@pytest.mark.parametrize("layout", ["tree", "rectangle"])
def test_a_rollout_does_not_depend_on_how_it_is_cut(layout, max_tokens):
    """F6, F11, G3, I2: padding, company and number of micro-batches."""
    config = replace(SMALL, truncation="bootstrap")
    options = dict(critic=make_head("token", "gpt_neox"))
    _, rows, whole, told = roll(config, **options)
    _, same, cut, told_cut = roll(config, layout=layout, max_tokens=max_tokens, **options)
    assert rows == same
    for name in ("old_logps", "old_values", "ref_logps", "advantages", "returns"):
        close(ragged(rows, cut[name]), ragged(rows, whole[name]))
    assert told_cut == near(told)


def test_the_score_is_on_the_last_real_token_of_every_response():
    """G1: values 0, reward 1: the advantage of the last token is 1 and not λ, padded or not."""
    ones = dict(reward=lambda prompts, responses: [1.0] * len(prompts))
    critic = make_head("token", "gpt_neox")
    for parameter in head(critic).parameters():
        parameter.data.zero_()
    _, rows, columns, _ = roll(BARE, critic=critic, **ones)
    for row, advantages in zip(rows, ragged(rows, columns["advantages"]), strict=True):
        length = len(row.responses[0])
        assert advantages == near([0.95 ** (length - 1 - t) for t in range(length)])
        assert advantages[-1] == 1.0


def test_what_stands_under_the_mask_never_counts():
    """G3, I1: NaN where there is no token reaches no reward."""
    mask = torch.tensor([[True, True, False], [True, False, False]])
    bad = torch.where(mask, -1.0, float("nan"))
    rewards = token_rewards(
        torch.tensor([2.0, 3.0]), bad, bad * 2, mask, kl_coef=0.5, estimator="k1"
    )
    assert rewards.tolist() == [[-0.5, 1.5, 0.0], [2.5, 0.0, 0.0]]


def test_whitened_rewards_keep_their_mean_and_change_their_scale():
    """G8: a flag that does something, and not what centring would."""
    made, rows, _, _ = roll(BARE)
    hand = by_hand(made, rows, kl_coef=0.0)
    plain = [r for row in hand.rewards for r in row]
    rewards, mask = (
        torch.tensor(plain, dtype=torch.float64)[None],
        torch.ones(1, len(plain), dtype=torch.bool),
    )
    scaled = experience.whiten_everywhere(made.accelerator, rewards, mask, shift_mean=False)[0]
    assert fmean(scaled.tolist()) == near(fmean(plain))
    assert pvariance(scaled.tolist()) == near(1 / (1 + 1e-8 / pvariance(plain)))


@pytest.mark.parametrize("layout", ["tree", "rectangle"])
@pytest.mark.parametrize("truncation", ["terminal", "bootstrap"])
def test_no_forward_of_a_rollout_is_above_max_tokens(monkeypatch, layout, truncation):
    """Sampling keeps nothing for a backward, and may take four times as many."""
    config, sampled, seen = replace(SMALL, truncation=truncation), [], []
    real = experience.sample

    def recorded(*args, max_tokens, **options):
        sampled.append(max_tokens)
        return real(*args, max_tokens=max_tokens, **options)

    monkeypatch.setattr(experience, "sample", recorded)
    for limit in range(20, 40):
        made = make_rollouts(config, max_tokens=limit, layout=layout)

        def look(module, arguments):
            seen.append((arguments[0].layout, arguments[0].input_ids.numel()))

        made.actor_critic.register_forward_pre_hook(look)
        rollout(made, prompts_of(8), range(8), 0, RolloutState(0.0))
        assert sampled.pop() == 4 * limit
        assert {found for found, _ in seen} == {layout}
        assert layout == "rectangle" or max(size for _, size in seen) <= limit
        seen.clear()


def test_rows_and_texts_of_what_was_sampled():
    """The text is without its end, with every space, and counts as one character if it is empty."""
    words = copy(small_tokenizers.gpt2())
    # what a tokenizer's own file may say
    words.clean_up_tokenization_spaces = True
    words.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    tokens = [words(text).input_ids for text in (" a .", "b", "")]
    ends = [tokens[0] + [0], tokens[1], [0]]
    sampled = [
        Sampled(t, [0.0] * len(t), f) for t, f in zip(ends, (True, False, True), strict=True)
    ]
    prompts = [[5], [6, 7], [8]]
    rows, texts = experience.as_rows(prompts, sampled, words)
    assert texts == [" a .", "b", ""]
    assert rows == [
        Row(0, [5], [ends[0]], [True], [4]),
        Row(1, [6, 7], [ends[1]], [False], [1]),
        Row(2, [8], [[0]], [True], [1]),
    ]
    with pytest.raises(ValueError):
        experience.as_rows(prompts[:2], sampled, words)


def test_a_stop_token_that_is_none_is_answered_with_those_there_are():
    words = copy(small_tokenizers.gpt2())
    words.add_special_tokens({"additional_special_tokens": ["<|other|>"]})
    with pytest.raises(InputError, match=r"such are <\|endoftext\|>, <\|other\|>$"):
        stop_ids(words, "~~~~~~~~~~~~")


def test_values_and_reference_are_kept_in_the_policys_dtype():
    made = make_rollouts(SMALL, dtype=torch.float32)
    policy, reference = made.actor_critic, made.reference

    def wider(batch):
        output = policy(batch)
        return output._replace(values=output.values.double())

    made = replace(made, actor_critic=wider, reference=lambda *inputs: reference(*inputs).double())
    responses = experience.respond(made, prompts_of(4), range(4), 0)
    looked = experience.evaluate_responses(made, responses)
    assert {x.dtype for x in looked[:3]} == {torch.float32}


def test_only_the_first_rollouts_are_the_critics():
    config, state = replace(SMALL, critic_warmup=2), RolloutState(0.0)
    weights = []
    for number in range(4):
        state.number = number
        weights.append(set(roll(config, state=state, number=number)[2]["policy_weight"].tolist()))
    assert weights == [{0.0}, {0.0}, {1.0}, {1.0}]


# --- scores --------------------------------------------------------------------------------------


def test_running_moments_are_those_of_all_scores_seen():
    """E11, G14: over three rollouts, each normalised by what had been seen by then, itself too."""
    config, past = replace(SMALL, score_norm=True), []
    state = RolloutState(kl_coef=config.kl_coef)
    for number in range(3):
        made, rows, columns, _ = roll(config, state=state, number=number)
        hand = by_hand(made, rows, kl_coef=config.kl_coef, past=past)
        close(ragged(rows, columns["advantages"]), hand.advantages)
        past += hand.raw
        assert state.scores_seen == len(past)
        assert state.score_mean == pytest.approx(fmean(past), rel=TIGHT)
        assert state.score_m2 == pytest.approx(pvariance(past) * len(past), rel=TIGHT)


def test_running_moments_do_not_cancel_far_from_zero():
    state, scores = RolloutState(0.0), [1e9 + i % 7 for i in range(70)]
    for start in range(0, 70, 10):
        part = scores[start : start + 10]
        update_moments(state, 10, fmean(part), pvariance(part) * 10)
    assert state.score_m2 / 70 == pytest.approx(pvariance(scores), rel=loose(torch.float32))


def test_scores_that_are_all_alike_stay_finite_when_normalised():
    """G14: a standard deviation of 0."""
    same = dict(reward=lambda prompts, responses: [0.1] * len(prompts))
    _, _, columns, told = roll(replace(SMALL, score_norm=True), **same)
    assert columns["advantages"].isfinite().all() and all(map(isfinite, told.values()))
    assert told["objective/rlhf_reward"] == near(told["objective/non_score_reward"])


def test_scores_keep_the_digits_that_the_reward_gave_them():
    made = make_rollouts(reward=lambda prompts, responses: [0.1] * len(prompts))
    responses = experience.respond(made, prompts_of(3), range(3), 0)
    assert responses.scores.tolist() == [0.1, 0.1, 0.1]


def test_a_missing_end_costs_what_it_is_told_to_and_only_where_it_is_missing():
    """G2: judged by the stop token that sampling obeys; after clipping, so that it always shows."""
    scores, ended = torch.tensor([3.0, 3.0, 0.5]), torch.tensor([True, False, False])
    config = PPOConfig(score_clip=1.0, missing_eos_penalty=2.0)
    found = shape_scores(scores, ended, config, RolloutState(0.0))
    assert found.tolist() == shaped(config, [3.0, 3.0, 0.5], ended.tolist(), ()) == [1, -1, -1.5]


def test_a_penalty_has_the_digits_of_the_scores():
    scores, ended = torch.zeros(1, dtype=torch.float64), torch.tensor([False])
    config = PPOConfig(missing_eos_penalty=0.1)
    assert shape_scores(scores, ended, config, RolloutState(0.0)).tolist() == [-0.1]


# --- the KL controller ---------------------------------------------------------------------------


@pytest.mark.parametrize("target, moves", [(1e-3, 1), (1e3, -1)])
def test_the_kl_coefficient_is_steered_by_zieglers_rule(target, moves):
    """β ← β (1 + clip(KL / target - 1, ±0.2) n / horizon); the rollout itself has the old one."""
    config = replace(SMALL, kl_target=target, kl_horizon=100)
    state = RolloutState(kl_coef=0.3)
    for number in range(2):
        before = state.kl_coef
        made, rows, _, told = roll(config, state=state, number=number)
        kl = fmean(by_hand(made, rows, kl_coef=before).kl)
        error = max(-0.2, min(kl / target - 1, 0.2))
        assert told["objective/kl_coef"] == before
        assert state.kl_coef == near(before * (1 + error * 8 / 100))
        assert (state.kl_coef - before) * moves > 0


def test_near_its_target_the_controller_moves_in_proportion():
    _, _, _, told = roll()
    kl = told["objective/kl"]
    state = RolloutState(kl_coef=0.3)
    roll(replace(SMALL, kl_target=kl / 1.1, kl_horizon=8), state=state)
    assert state.kl_coef == near(0.3 * 1.1)


# --- what a rollout says of itself ---------------------------------------------------------------


def test_objective_metrics_are_means_over_responses_of_what_the_names_say():
    """I1, I2: the entropy is the sum of -log p, padding not counted."""
    config = replace(SMALL, missing_eos_penalty=1.0, kl_coef=0.2, kl_estimator="k3")
    made, rows, _, told = roll(config)
    hand = by_hand(made, rows, kl_coef=0.2)
    penalties = [sum(r) - s for r, s in zip(hand.rewards, hand.scores, strict=True)]
    ended, lengths = [row.ends[0] for row in rows], [len(row.responses[0]) for row in rows]
    assert told == near(
        {
            "objective/kl": fmean(hand.kl),
            "objective/entropy": fmean(-sum(logps) for logps in hand.logps),
            "objective/non_score_reward": fmean(penalties),
            "objective/rlhf_reward": fmean(map(sum, hand.rewards)),
            "objective/scores": fmean(hand.raw),
            "objective/kl_coef": 0.2,
            "val/num_eos_tokens": fmean(ended),
            "rollout/truncated": 1 - fmean(ended),
            "rollout/response_length": fmean(lengths),
        },
    )


def test_without_a_reference_nothing_is_said_of_a_kl():
    """H7: both coefficients 0: the same rollout as with a reference, and no KL of 0 in the log."""
    _, rows, without, told = roll(BARE, reference=None)
    _, same, beside, told_beside = roll(BARE)
    assert rows == same and torch.equal(without["advantages"], beside["advantages"])
    assert "objective/kl" not in told and told_beside["objective/kl"] != 0
    assert told.items() <= told_beside.items()
