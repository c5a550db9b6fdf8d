"""Every option of PPO does something, and first where it should; or it is refused in one line."""

from dataclasses import fields, replace
from functools import cache

import pytest
import small_tokenizers as small
import torch
from accelerate import Accelerator
from datafiles import lines, write
from rollouts import SMALL, left_behind, train

from data.errors import InputError
from losses import LOSSES
from losses.ppo import PPOConfig
from rollout.sample import stop_ids
from runtime.config import Run, TrainConfig
from runtime.sources.prompts import plan_prompts

# option: (what else is set, its other value, what is the first thing to change)
KNOBS = {
    "rollout_size": ({}, 4, "steps"),
    "ppo_epochs": ({}, 1, "steps"),
    "max_new_tokens": ({}, 5, "responses"),
    "stop_tokens": ({}, "5", "responses"),
    "temperature": ({}, 0.5, "responses"),
    "top_k": ({}, 2, "responses"),
    "top_p": ({}, 0.5, "responses"),
    "kl_coef": ({}, 0.1, "worth"),
    "kl_estimator": ({}, "k3", "worth"),
    "kl_target": (dict(kl_horizon=8), 0.01, "worth of the second rollout"),
    "kl_horizon": (dict(kl_target=0.01), 8, "worth of the second rollout"),
    "kl_loss_coef": ({}, 0.1, "gradient"),
    "score_clip": ({}, 0.25, "worth"),
    "score_norm": ({}, True, "worth"),
    "missing_eos_penalty": ({}, 1.0, "worth"),
    "truncation": ({}, "bootstrap", "worth"),
    "whiten_rewards": ({}, True, "worth"),
    "whiten_advantages": ({}, False, "worth"),
    "gamma": ({}, 0.9, "worth"),
    "lam": ({}, 0.5, "worth"),
    "clip": ({}, 0.02, "a later step"),
    "value_clip": ({}, 0.01, "a later step"),
    "value_coef": ({}, 0.5, "gradient"),
    "entropy_coef": ({}, 0.1, "gradient"),
    "critic_warmup": ({}, 1, "gradient"),
    "target_kl": ({}, 1e-6, "steps"),
}
# below, in test_ppo_run.py and in test_optimizer.py
CHECKED_BY_THE_SOURCE = {"reward", "prompts", "ref_model", "critic_learning_rate"}


@cache
def stages(config):
    """What two rollouts and their steps came to, in the order in which things happen."""
    left = left_behind(train(config))
    worth = [part["advantages"] + part["returns"] for part in left["columns"]]
    return {
        "steps": len(left["metrics"]),
        "responses": left["responses"][0],
        "worth": worth[0],
        "gradient": left["gradients"][0].tolist(),
        "a later step": left["gradients"][1:4] and torch.cat(left["gradients"][1:4]).tolist(),
        "worth of the second rollout": worth[1:],
    }


def test_every_option_is_looked_at():
    names = {field.name for field in fields(PPOConfig)}
    assert KNOBS.keys() | CHECKED_BY_THE_SOURCE == names
    assert not KNOBS.keys() & CHECKED_BY_THE_SOURCE


@pytest.mark.parametrize("name", KNOBS)
def test_an_option_changes_what_it_says_and_nothing_before_that(name):
    """F13, F14, G8, H2, H3: no option is read by nobody."""
    others, value, where = KNOBS[name]
    config = replace(SMALL, **others)
    assert getattr(config, name) != value
    plain, flipped = stages(config), stages(replace(config, **{name: value}))
    changed = [stage for stage in plain if plain[stage] != flipped[stage]]
    assert changed and changed[0] == where


def test_without_a_weight_on_the_kl_its_estimator_is_not_used():
    """H7: both coefficients 0: the objective has no KL in it, however it would be estimated."""
    off = replace(SMALL, kl_coef=0.0)
    assert not off.needs_reference
    assert stages(off) == stages(replace(off, kl_estimator="k3"))
    assert replace(off, kl_loss_coef=0.1).needs_reference


# --- values without a meaning --------------------------------------------------------------------

REFUSED = [
    *((name, 0) for name in ("rollout_size", "ppo_epochs", "max_new_tokens", "temperature")),
    *((name, -1) for name in ("clip", "value_clip", "kl_target", "score_clip", "target_kl")),
    *((name, 0) for name in ("clip", "value_clip", "kl_target", "score_clip", "target_kl")),
    *((name, -0.1) for name in ("kl_coef", "kl_loss_coef", "value_coef", "entropy_coef")),
    *((name, float("nan")) for name in ("kl_coef", "temperature", "missing_eos_penalty", "gamma")),
    *((name, float("inf")) for name in ("kl_coef", "temperature", "value_coef", "clip", "top_k")),
    *((name, -1) for name in ("critic_warmup", "top_k", "missing_eos_penalty", "kl_horizon")),
    *((name, 1.5) for name in ("gamma", "lam", "top_p")),
    ("top_p", 0),
]


@pytest.mark.parametrize("name, value", REFUSED)
def test_a_value_without_a_meaning_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"^--{name} {value} [^\n]+$"):
        PPOConfig(**{name: value})


def test_no_share_of_the_mass_is_not_the_way_to_turn_top_p_off():
    with pytest.raises(ValueError, match="^--top_p 0 leaves no token; 1 is off$"):
        PPOConfig(top_p=0)


@pytest.mark.parametrize(
    "options, reference",
    [
        ({}, True),
        ({"kl_coef": 0}, False),
        ({"kl_coef": 0, "kl_loss_coef": 0.1}, True),
    ],
)
def test_a_reference_is_needed_where_a_kl_is_asked_for(options, reference):
    """At the start its KL is 0, unless the reference is another model than the policy."""
    config = PPOConfig(**options)
    loss = LOSSES["ppo"]
    assert loss.needs(config) == {"rollouts", "critic"} | ({"reference"} if reference else set())
    assert loss.expected_initial_metrics(config) == ({"kl": 0.0} if reference else {})
    assert loss.expected_initial_metrics(replace(config, ref_model="another")) == {}


def test_a_target_that_nothing_could_steer_is_refused():
    """A coefficient of 0 stays 0, whatever it is multiplied by."""
    with pytest.raises(ValueError, match="^--kl_target needs a --kl_coef above 0 to start from$"):
        PPOConfig(kl_target=0.1, kl_coef=0)


# --- sizes ---------------------------------------------------------------------------------------


def source(batch_size=4, ppo=SMALL, accelerator=None, **flags):
    config = TrainConfig(loss="ppo", batch_size=batch_size, **flags)
    return plan_prompts(Run(config, ppo, {}), LOSSES["ppo"], accelerator or Accelerator(cpu=True))


@pytest.mark.parametrize(
    "flags, ppo, steps, rollouts",
    [
        (dict(max_steps=3), {}, 3, 1),
        (dict(max_steps=9), {}, 9, 3),
        (dict(epochs=1.0), {}, 8 * 4, 8),  # pocket has 60 prompts: 8 rollouts of 8
        (dict(epochs=0.2), {}, 2 * 4, 2),
        (dict(epochs=1.0, batch_size=8), dict(ppo_epochs=3), 8 * 3, 8),
        (dict(epochs=2.0), dict(rollout_size=60, ppo_epochs=1), 2 * 15, 2),
    ],
)
def test_the_plan_counts_optimizer_steps(flags, ppo, steps, rollouts):
    """F13: what is printed is what rollout_steps makes (test_ppo_steps.py counts those)."""
    made = source(ppo=replace(SMALL, **ppo), **flags)
    assert made.steps == steps
    plan = made.summary[1]
    assert plan.startswith(f"plan: {rollouts} rollouts of {made.ppo.rollout_size} responses")
    assert plan.endswith(f": {steps} optimizer steps")


def test_a_held_policy_is_not_left_to_weight_decay():
    """In its warm-up the policy's gradient is 0; AdamW would shrink its weights all the same."""
    message = "^--weight_decay would shrink the policy while --critic_warmup holds it; give one$"
    with pytest.raises(InputError, match=message):
        source(ppo=replace(SMALL, critic_warmup=1), weight_decay=0.1)


class Three:
    num_processes = 3


@pytest.mark.parametrize(
    "batch_size, accelerator, message",
    [
        (3, None, "--rollout_size 8 is not a multiple of 3"),
        (16, None, "--rollout_size 8 is not a multiple of 16"),
        (4, Three(), "--batch_size 4 is not a multiple of 3"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(batch_size, accelerator, message):
    """F12: else responses would be left out, or ranks would differ in how many they have."""
    with pytest.raises(InputError) as error:
        source(batch_size, accelerator=accelerator)
    assert (str(error.value), error.value.exit_code) == (message, 2)


# --- where responses end -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stop_tokens, message",
    [
        ("Ġbuckett", "Ġbuckett: not one token of the tokenizer; did you mean Ġbucket?"),
        ("Ġa,~~~~~~~~", "~~~~~~~~: not one token of the tokenizer; such are <|endoftext|>"),
        ("Ġa,", ": not one token of the tokenizer; such are <|endoftext|>"),
    ],
)
def test_a_stop_that_is_not_one_token_is_refused_before_anything_is_loaded(stop_tokens, message):
    with pytest.raises(InputError) as error:
        source(ppo=replace(SMALL, stop_tokens=stop_tokens))
    assert (str(error.value), error.value.exit_code) == (f"--stop_tokens {message}", 2)


@pytest.mark.parametrize("name", ["chatml", "unigram", "gemma"])
def test_stop_tokens_are_those_of_the_vocabulary_and_the_end_token(name):
    tokenizer = small.ALL[name]()
    end, other = tokenizer.eos_token_id, len(tokenizer) - 1
    token = tokenizer.convert_ids_to_tokens(other)
    assert stop_ids(tokenizer, None) == (end,)
    assert stop_ids(tokenizer, token) == stop_ids(tokenizer, f"{token},{tokenizer.eos_token}")
    assert stop_ids(tokenizer, token) == (end, other)


# --- where prompts and rewards are from ----------------------------------------------------------


def test_without_a_reward_only_pocket_can_go_on(tmp_path):
    file = write(tmp_path, {"p.jsonl": lines(*({"prompt": f"Is {i} odd?"} for i in range(20)))})
    prompts = str(file / "p.jsonl")
    for flags, ppo in ((dict(data=prompts), {}), ({}, dict(prompts=prompts))):
        with pytest.raises(InputError, match="^--reward is missing: train one with --loss reward"):
            source(ppo=replace(SMALL, **ppo), **flags)
        named = source(ppo=replace(SMALL, reward="math:dist", **ppo), **flags)
        assert (named.reward_model, named.on_pocket) == (None, False)
        assert len(named.train) + len(named.heldout) == 20
    assert source().on_pocket
    assert source(data=prompts, ppo=replace(SMALL, prompts="pocket")).on_pocket
