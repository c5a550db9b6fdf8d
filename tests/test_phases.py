"""Sources in phases: plan, models, feed, each frozen; and steps from any step."""

import copy
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from accelerate import Accelerator
from rollouts import SMALL, make_rollouts, prompts_of
from test_ppo_steps import EVERYTHING

from losses import LOSSES
from losses.ppo import LOSS as PPO
from models.load import load_causal_lm
from rollout.state import RolloutState
from rollout.steps import leave_early, rollout_steps
from runtime.config import Run, TrainConfig
from runtime.sources.prompts import plan_prompts
from runtime.sources.rows import plan_rows
from runtime.state import TrainState
from train import optimizer_step


@pytest.fixture(scope="module")
def phases(tmp_path_factory):
    """(plan, models, feed) of SFT on pocket, five steps."""
    config = TrainConfig(loss="sft", learning_rate=1e-3, max_steps=5, batch_size=48)
    plan = plan_rows(Run(config, LOSSES["sft"].config(), {}), LOSSES["sft"], Accelerator(cpu=True))
    models = plan.load()
    return plan, models, models.feed(models.trained, TrainState(), tmp_path_factory.mktemp("run"))


def test_phases_do_not_change(phases):
    plan, models, feed = phases
    for phase, name in ((plan, "steps"), (models, "layout"), (feed, "train")):
        with pytest.raises(FrozenInstanceError):
            setattr(phase, name, None)
    config = TrainConfig(loss="ppo", batch_size=8)
    with pytest.raises(FrozenInstanceError):
        plan_prompts(Run(config, SMALL, {}), PPO, Accelerator(cpu=True)).steps = 3


def test_what_ppo_saves_is_the_policy():
    """J2: neither the module that it is trained in nor the critic."""
    config = TrainConfig(loss="ppo", batch_size=8)
    models = plan_prompts(Run(config, SMALL, {}), PPO, Accelerator(cpu=True)).load()
    names = list(load_causal_lm("pocket", dtype="float32").state_dict())
    assert list(models.saved.state_dict()) == names


@pytest.mark.parametrize("start", [0, 1, 4, 5])
def test_rows_are_fed_from_any_step(phases, start):
    """Steps 2 and on are across an epoch's end: 48 rows a step, 210 rows."""
    feed = phases[2]
    whole = [step.rows for step in feed.steps(0)]
    assert [step.rows for step in feed.steps(start)] == whole[start:]
    assert len(whole) == 5 and len({str(step) for step in whole}) == 5


def run_from(made, state, weights, *, steps, until=None):
    """SGD from `weights` and `state` to the end, or to step `until`: (state, weights, metrics)."""
    module, accelerator, config = made.actor_critic, made.accelerator, made.config
    module.load_state_dict(weights)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.02)
    seen = []
    feed = rollout_steps(made, prompts_of(12), batch_size=4, steps=steps, seed=0, state=state)
    for rows in feed:
        batches = rows.batches(made.max_tokens, accelerator.device)
        _, metrics = optimizer_step(accelerator, module, PPO, config, batches)
        optimizer.step()
        optimizer.zero_grad()
        leave_early(state, config, metrics)
        seen.append(metrics)
        if len(seen) == until:
            break
    return state, {k: v.clone() for k, v in module.state_dict().items()}, seen


@pytest.mark.parametrize("config", [EVERYTHING, replace(SMALL, target_kl=0.02)], ids=["all", "kl"])
def test_rollouts_go_on_from_any_step_as_if_nothing_had_been(config):
    """In the middle of a rollout's epochs and between rollouts: state and weights are enough."""
    made, steps = make_rollouts(config), 10
    first = {k: v.clone() for k, v in made.actor_critic.state_dict().items()}
    fresh = RolloutState(kl_coef=config.kl_coef)
    whole, weights, seen = run_from(made, copy.deepcopy(fresh), first, steps=steps)
    assert whole.number == 3
    for k in range(1, len(seen)):
        state, middle, before = run_from(made, copy.deepcopy(fresh), first, steps=steps, until=k)
        end, last, after = run_from(made, copy.deepcopy(state), middle, steps=steps)
        assert before + after == seen, k
        assert all(torch.equal(last[name], weights[name]) for name in weights), k
        assert (end.kl_coef, end.score_mean, end.score_m2) == (
            *(whole.kl_coef, whole.score_mean),
            whole.score_m2,
        )
