"""Whole rollouts of tiny models, and the same worked out one response at a time in plain Python."""

from math import exp, sqrt
from statistics import fmean, pstdev
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from tiny_models import flat_grad, make_head, make_model, make_rows
from tolerances import TIGHT, loose
from torch import nn

from losses.ppo import LOSS, PPOConfig
from models.forward import ActorCritic, Policy
from rollout import steps as rollout_steps_module
from rollout.experience import Prompt, Rollouts
from rollout.state import RolloutState
from rollout.steps import leave_early, rollout_steps
from runtime.metrics import Totals
from train import optimizer_step

THROUGH_A_MODEL = 100 * TIGHT  # 1e-10, as in test_trees.py
RATIO = 10 * loose(torch.float32)  # just below 1e-5: how far from 1 before any update
EOS = 2
SMALL = PPOConfig(rollout_size=8, max_new_tokens=6, ppo_epochs=2)


def near(expected):
    """Equal to what a float64 model allows, for numbers of about 1."""
    return pytest.approx(expected, rel=THROUGH_A_MODEL, abs=THROUGH_A_MODEL)


class Numbers:
    """A tokenizer whose tokens are called by their numbers."""

    eos_token_id = EOS

    def convert_tokens_to_ids(self, token):
        return int(token) if token.isdigit() else None

    def convert_ids_to_tokens(self, number):
        return str(number)

    def decode(self, tokens, **_):
        return " ".join(map(str, tokens))


class PositionCritic(nn.Module):
    """A critic whose value of a state is the position of the last token in it."""

    def __init__(self, like):
        super().__init__()
        self.config, self.dtype, self.score = like.config, like.dtype, nn.Identity()

    def get_output_embeddings(self):
        return None

    def base_model(self, position_ids, **_):
        return SimpleNamespace(last_hidden_state=position_ids[..., None].to(self.dtype))


def prompts_of(count):
    """Prompts of unequal lengths, of tokens 3 to 7."""
    rows = make_rows(count, seed=3)
    ids = [[3 + token % 5 for token in row.prompt] for row in rows]
    return [Prompt(Numbers().decode(tokens), tokens) for tokens in ids]


def make_policy(seed=0, dtype=torch.float64, family="gpt_neox"):
    """Eight tokens, none of them certain; a response ends within a few or is cut."""
    model = make_model(family, dtype, seed, vocab_size=8)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(5)
    return model


def by_numbers(prompts, responses):
    """A reward between -1/2 and 1/2 that follows from the text; 0 is as frequent as any."""
    return [(sum(map(int, text.split())) % 5 - 2) / 4 for text in responses]


def make_rollouts(
    config=SMALL,
    *,
    critic=None,
    reference=1,
    reward=by_numbers,
    dtype=torch.float64,
    max_tokens=4096,
    layout="tree",
):
    """`reference`: the seed of its weights (the policy's is 0), or None."""
    accelerator, model = Accelerator(cpu=True), make_policy(dtype=dtype)

    def reduce(metrics):
        totals = Totals()
        totals.add(metrics)
        return totals.reduce(accelerator)

    module = ActorCritic(
        Policy(model),
        critic or make_head("token", "gpt_neox", dtype),
        temperature=config.temperature,
        entropy=config.entropy_coef > 0,
    )
    frozen = None if reference is None else Policy(make_policy(reference, dtype))
    settings = (reward, Numbers(), config, layout, max_tokens, reduce)
    return Rollouts(accelerator, module, model, frozen, *settings)


def train(config=SMALL, *, steps=None, rate=0.02, batch_size=4, prompts=12, seed=0, **options):
    """What the loop does with PPO's steps, with plain SGD.

    Returns all that one could ask of it afterwards: `steps`, each with its batches, metrics, units
    and gradient; `rollouts`, each as (rows, columns); the module, and the state.
    """
    made = make_rollouts(config, **options)
    accelerator, module = made.accelerator, made.actor_critic
    wrapped = accelerator.prepare(module)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=rate)
    run = SimpleNamespace(
        module=module, state=RolloutState(kl_coef=config.kl_coef), steps=[], rollouts=[], told=[]
    )
    real = rollout_steps_module.rollout

    def recorded(*arguments):
        made = real(*arguments)
        run.rollouts.append((made.split.rows, made.split.columns))
        run.told.append(made.metrics)
        return made

    steps = steps or 2 * config.ppo_epochs * (config.rollout_size // batch_size)  # two rollouts
    more = dict(batch_size=batch_size, steps=steps, seed=seed, state=run.state)
    rollout_steps_module.rollout = recorded
    try:
        for rows in rollout_steps(made, prompts_of(prompts), **more):
            batches = rows.batches(made.max_tokens, accelerator.device)
            units, metrics = optimizer_step(accelerator, wrapped, LOSS, config, batches)
            gradient = flat_grad(module)
            optimizer.step()
            optimizer.zero_grad()
            leave_early(run.state, config, metrics)
            record = dict(batches=batches, units=units, metrics=metrics, gradient=gradient)
            run.steps.append(SimpleNamespace(**record))
    finally:
        rollout_steps_module.rollout = real
    run.weights = torch.cat([p.detach().flatten() for p in module.parameters()])
    return run


# ---------------------------------------------------------------- by hand


def logps_alone(model, row, temperature):
    """Of one response by itself, without padding or mask."""
    with torch.no_grad():
        logits = model(torch.tensor([row.prompt + row.responses[0]])).logits[0] / temperature
    logps = logits.log_softmax(-1)[len(row.prompt) - 1 : -1]
    return [logps[t, token].item() for t, token in enumerate(row.responses[0])]


def whitened(rows, *, keep_mean=False):
    """Over all tokens of all rows: population variance."""
    flat = [x for row in rows for x in row]
    mean, deviation = fmean(flat), sqrt(pstdev(flat) ** 2 + 1e-8)
    return [[(x - mean) / deviation + keep_mean * mean for x in row] for row in rows]


def shaped(config, raw, ends, past):
    """Scores as they enter the reward; `past` are the raw ones of earlier rollouts."""
    scores, seen = list(raw), [*past, *raw]
    if config.score_norm:
        scores = [(score - fmean(seen)) / pstdev(seen) for score in scores]
    if config.score_clip is not None:
        scores = [max(-config.score_clip, min(score, config.score_clip)) for score in scores]
    penalty = config.missing_eos_penalty
    return [s if end else s - penalty for s, end in zip(scores, ends, strict=True)]


def by_hand(made, rows, *, kl_coef, past=()):
    """What a rollout of these rows is worth, its critic being PositionCritic.

    Every advantage is the double sum that defines it, A_t = Σ_l (γλ)^l δ_{t+l}.
    """
    config, found = made.config, SimpleNamespace(logps=[], kl=[], advantages=[], returns=[])
    ends = [row.ends[0] for row in rows]
    texts = [made.tokenizer.decode(row.responses[0][: -1 if row.ends[0] else None]) for row in rows]
    found.raw = made.reward(["" for _ in rows], texts)
    found.scores = shaped(config, found.raw, ends, past)
    rewards, estimate = [], {"k1": lambda d: d, "k2": lambda d: d * d / 2}
    estimate["k3"] = lambda d: exp(-d) - 1 + d
    for row, score in zip(rows, found.scores, strict=True):
        logps = logps_alone(made.model, row, config.temperature)
        ref = logps
        if made.reference is not None:
            ref = logps_alone(made.reference.model, row, config.temperature)
        kl = [a - b for a, b in zip(logps, ref, strict=True)]
        rewards.append([-kl_coef * estimate[config.kl_estimator](d) for d in kl])
        rewards[-1][-1] += score
        found.logps.append(logps)
        found.kl.append(sum(kl))
    found.rewards = rewards
    if config.whiten_rewards:
        rewards = whitened(rewards, keep_mean=True)
    discount = config.gamma * config.lam
    for row, reward in zip(rows, rewards, strict=True):
        length = len(reward)
        before = [len(row.prompt) + t - 1 for t in range(length + 1)]  # the last is after the end
        if row.ends[0] or config.truncation == "terminal":
            before[-1] = 0
        delta = [reward[t] + config.gamma * before[t + 1] - before[t] for t in range(length)]
        found.advantages.append(
            [sum(discount**k * delta[t + k] for k in range(length - t)) for t in range(length)]
        )
        found.returns.append([a + v for a, v in zip(found.advantages[-1], before, strict=False)])
    if config.whiten_advantages:
        found.advantages = whitened(found.advantages)
    return found


# ---------------------------------------------------------------- what a training left


def ragged(rows, values):
    """What (S, T) values hold of each response; nothing else of them may differ from 0."""
    parts = [row[: len(r.responses[0])].tolist() for row, r in zip(values, rows, strict=True)]
    outside = values.abs().sum().item() - sum(abs(x) for part in parts for x in part)
    assert abs(outside) <= TIGHT * values.abs().sum().item()
    return parts


def left_behind(run):
    """Everything that must not depend on how the work is cut, as plain lists and tensors."""
    fields = ("old_logps", "old_values", "advantages", "returns", "ref_logps")
    return {
        "responses": [[row.responses[0] for row in rows] for rows, _ in run.rollouts],
        "ends": [[row.ends[0] for row in rows] for rows, _ in run.rollouts],
        "columns": [
            {field: ragged(rows, columns[field]) for field in fields}
            for rows, columns in run.rollouts
        ],
        "told": run.told,
        "units": [step.units for step in run.steps],
        "metrics": [step.metrics for step in run.steps],
        "gradients": [step.gradient for step in run.steps],
        "weights": run.weights,
        "parts": [len(step.batches) for step in run.steps],
        "rows": [sum(len(b.index) * (not b.dummy) for b in step.batches) for step in run.steps],
        "kl_coef": run.state.kl_coef,
        "moments": [run.state.scores_seen, run.state.score_mean, run.state.score_m2],
    }
