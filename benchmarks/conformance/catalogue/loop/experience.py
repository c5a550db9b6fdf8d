"""What a rollout is worth: log-probs, values, rewards, advantages; each response by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import Tensor

from benchmarks.conformance.catalogue.loop.across_ranks import Alone
from benchmarks.conformance.catalogue.loop.base import Seen, in_the_loop
from benchmarks.conformance.catalogue.loop.ranks import on_ranks
from benchmarks.conformance.catalogue.loop.rollouts import (
    Done,
    logps_by_hand,
    make,
    one_rollout,
    values_by_hand,
)
from losses.advantages import gae as token_advantages
from losses.advantages import masked_whiten
from losses.ppo import PPOConfig
from rollout import experience
from rollout.experience import RolloutState
from runtime.metrics import Totals

PLAIN: dict[str, Any] = dict(rollout_size=4, ppo_epochs=2, max_new_tokens=6, temperature=0.7)


def a_rollout(**options: Any) -> list[Seen]:
    """Four responses at temperature 0.7; every advantage is the double sum that defines it."""
    config = PPOConfig(**(PLAIN | options))
    return compared(one_rollout(config))


def compared(done: Done) -> list[Seen]:
    made, config, old = done.made, done.made.config, done.trajectory
    models: Any = made
    critic, reference = models.actor_critic.critic, models.reference.model
    logps = [logps_by_hand(made.model, row, config.temperature) for row in done.rows]
    refs = [logps_by_hand(reference, row, config.temperature) for row in done.rows]
    values = [values_by_hand(critic, row) for row in done.rows]
    said = [row.responses[0][: -1 if row.ends[0] else None] for row in done.rows]
    texts = [str(made.tokenizer.decode(tokens)) for tokens in said]
    scores = list(made.reward([""] * len(texts), texts))
    rewards = [
        [-config.kl_coef * (a - b) for a, b in zip(*both, strict=True)]
        for both in zip(logps, refs, strict=True)
    ]
    for reward, score in zip(rewards, scores, strict=True):
        reward[-1] += score
    if config.whiten_rewards:
        flat = [x for reward in rewards for x in reward]
        mean, deviation = fmean(flat), math.sqrt(pstdev(flat) ** 2 + 1e-8)
        rewards = [[(x - mean) / deviation + mean for x in reward] for reward in rewards]
    advantages = [gae(*both, config) for both in zip(rewards, values, strict=True)]
    returns = [
        [a + v for a, v in zip(*both, strict=True)] for both in zip(advantages, values, strict=True)
    ]
    return [
        Seen("scores, their mean", fmean(scores), done.metrics["objective/scores"]),
        Seen("log-probs when sampled", logps, done.ragged(old.old_logps)),
        Seen("values when sampled", values, done.ragged(old.old_values)),
        Seen("advantages", whitened(advantages), done.ragged(old.advantages)),
        Seen("returns", returns, done.ragged(old.returns)),
        Seen("objective/entropy", -sum(map(sum, logps)) / 4, done.metrics["objective/entropy"]),
    ]


def gae(rewards: list[float], values: list[float], config: PPOConfig) -> list[float]:
    """A_t = Σ_l (γλ)^l δ_(t+l), nothing after the last token."""
    after, discount = [*values[1:], 0.0], config.gamma * config.lam
    delta = [r + config.gamma * n - v for r, n, v in zip(rewards, after, values, strict=True)]
    n = len(delta)
    return [sum(discount**k * delta[t + k] for k in range(n - t)) for t in range(n)]


def whitened(rows: list[list[float]]) -> list[list[float]]:
    """Over all tokens: mean 0, population variance 1."""
    flat = [x for row in rows for x in row]
    mean, deviation = fmean(flat), math.sqrt(pstdev(flat) ** 2 + 1e-8)
    return [[(x - mean) / deviation for x in row] for row in rows]


# ---------------------------------------------------------------- log-probs and values

LOOK = "rollout.experience:evaluate_responses"


@in_the_loop("F1", LOOK, a_rollout)
def old_log_probs_with_dropout(right: Any, rollouts: Any, responses: Any) -> Any:
    """Old log-probs come from another forward than the new ones, here one with dropout on: the
    ratio is not 1 before any update."""
    torch.manual_seed(1)
    rollouts.actor_critic.train()
    try:
        return right(rollouts, responses)
    finally:
        rollouts.actor_critic.eval()


@in_the_loop("F2", LOOK, a_rollout)
def old_log_probs_at_one(right: Any, rollouts: Any, responses: Any) -> Any:
    """Sampled at temperature 0.7, and the old log-probs taken at 1."""
    rollouts.actor_critic.temperature, kept = 1.0, rollouts.actor_critic.temperature
    try:
        return right(rollouts, responses)
    finally:
        rollouts.actor_critic.temperature = kept


@in_the_loop("F9", LOOK, a_rollout)
def values_of_another_row(right: Any, rollouts: Any, responses: Any) -> Any:
    """Batches are cut by length and put back in order, all but the values: a row gets those of its
    neighbour under its own mask."""
    looked = right(rollouts, responses)
    return looked._replace(values=looked.values.roll(1, 0))


@in_the_loop("F10", LOOK, a_rollout)
def mask_of_the_querys_length(right: Any, rollouts: Any, responses: Any) -> Any:
    """The response's mask is made with the query's length: tokens count by how long the prompt
    was."""
    looked = right(rollouts, responses)
    lengths = torch.tensor([[len(row.prompt)] for row in responses.rows])
    return looked._replace(mask=torch.arange(looked.mask.shape[1]) < lengths)


@in_the_loop("G4", "losses.forward:ActorCritic.forward", a_rollout)
def values_after_the_token(right: Any, self: Any, batch: Any) -> Any:
    """The value of a token is read at the token itself, so of the state that it leads to: one
    position late."""
    output = right(self, batch)
    late = torch.cat([output.values[:, 1:], output.values[:, -1:]], 1)
    return output._replace(values=torch.where(batch.mask, late, 0.0))


# ---------------------------------------------------------------- scores and rewards


@in_the_loop("F11", "rollout.experience:score", a_rollout)
def half_of_the_buffer_scored(right: Any, reward: Any, prompts: Any, responses: Any) -> Any:
    """A slice of the buffer that is not what it looks like: the first half of the responses is
    scored, and scored again."""
    half = right(reward, prompts[: len(prompts) // 2], responses[: len(prompts) // 2])
    return half + half


@in_the_loop("E12", "rollout.experience:score", a_rollout)
def zero_taken_for_none(right: Any, *args: Any) -> list[float]:
    """`score or default`: a valid score of 0.0 is false, and becomes the default."""
    return [score or -1.0 for score in right(*args)]


@in_the_loop("G8", "rollout.experience:rollout", a_rollout, whiten_rewards=True)
def flag_that_nobody_reads(right: Any, rollouts: Any, *rest: Any) -> Any:
    """whiten_rewards is in the configuration and nowhere else."""
    config = replace(rollouts.config, whiten_rewards=False)
    return right(replace(rollouts, config=config), *rest)


def score_after_the_end() -> list[Seen]:
    """Two responses with a reward of 1 at the end and values of 0, one of them padded."""
    zeros = torch.zeros(2, 3, dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    ones = torch.ones(2, dtype=torch.float64)
    rewards = experience.token_rewards(ones, zeros, zeros, mask, kl_coef=0.1, kind="k1")
    advantages, _ = token_advantages(rewards, zeros, torch.ones_like(mask), gamma=1.0, lam=0.95)
    at_end = [advantages[0, 1].item(), advantages[1, 2].item()]
    return [Seen("advantage of the last token", [1.0, 1.0], at_end)]


@in_the_loop("G1", "rollout.experience:token_rewards", score_after_the_end)
def score_one_after_the_end(
    right: Any, scores: Tensor, logps: Tensor, ref_logps: Tensor, mask: Tensor, **options: Any
) -> Tensor:
    """The score is put one token after the end where there is padding, and on the last token where
    there is none: two conventions in one batch, and 0.95 for 1."""
    rewards: Tensor = right(0 * scores, logps, ref_logps, mask, **options)
    place = mask.sum(-1, keepdim=True).clamp(max=mask.shape[1] - 1)
    return rewards.scatter_add(1, place, scores[:, None])


def drift_is_paid_for() -> list[Seen]:
    """A token that the policy has made e times likelier than the reference, at a weight of 0.1."""
    one = torch.ones(1, 1, dtype=torch.float64)
    rewards = experience.token_rewards(
        torch.zeros(1), -one, -2 * one, one.bool(), kl_coef=0.1, kind="k1"
    )
    return [Seen("reward of the token", -0.1, rewards.item())]


@in_the_loop("H4", "rollout.experience:token_rewards", drift_is_paid_for)
def drift_is_rewarded(
    right: Any, scores: Tensor, logps: Tensor, ref_logps: Tensor, mask: Tensor, **options: Any
) -> Any:
    """The log-ratio is turned round: the policy is paid for leaving the reference."""
    return right(scores, ref_logps, logps, mask, **options)


def constant_scores() -> list[Seen]:
    """Eight scores of 0.5 so far, so a deviation of 0, and --score_norm."""
    state = RolloutState(kl_coef=0.1, scores_seen=8.0, score_mean=0.5, score_m2=0.0)
    half, ended = torch.full((2,), 0.5, dtype=torch.float64), torch.tensor([True, True])
    config = PPOConfig(score_norm=True)
    shaped = experience.shape_scores(half, ended, config, state)
    return [Seen("scores", [0.0, 0.0], shaped.tolist())]


@in_the_loop("G14", "rollout.experience:shape_scores", constant_scores)
def divided_by_a_deviation_of_zero(
    right: Any, scores: Tensor, finished: Tensor, config: Any, state: Any
) -> Any:
    """Scores are divided by their standard deviation as it is: 0/0 when all were equal."""
    return (scores - state.score_mean) / (torch.tensor(state.score_m2) / state.scores_seen).sqrt()


@in_the_loop("I1", "rollout.experience:masked_sum", a_rollout)
def sentinel_summed(right: Any, x: Tensor, mask: Tensor) -> Tensor:
    """Padding holds a log-prob of 1 and is summed: an entropy that falls with the padding, below 0
    for long ones."""
    return torch.where(mask, x, -1.0).sum(-1)


# ---------------------------------------------------------------- over all ranks


def rollout_of_two_ranks() -> list[Seen]:
    """The same four responses on two ranks, two each, with --score_norm."""
    config = PPOConfig(**PLAIN, score_norm=True)
    whole = one_rollout(config)
    made = [make(config), make(config)]

    def work(rank: Any) -> Done:
        of_rank = made[rank.process_index]
        return one_rollout(config, made=_on(of_rank, rank))

    found = on_ranks(2, work)
    merged = [found[i % 2].ragged(found[i % 2].trajectory.advantages)[i // 2] for i in range(4)]
    return [
        Seen("advantages", whole.ragged(whole.trajectory.advantages), merged),
        Seen(
            "mean of the scores", [whole.state.score_mean] * 2, [f.state.score_mean for f in found]
        ),
        Seen(
            "objective/kl",
            [whole.metrics["objective/kl"]] * 2,
            [f.metrics["objective/kl"] for f in found],
        ),
    ]


def _on(made: Any, rank: Any) -> Any:
    def reduce(metrics: Any) -> dict[str, float]:
        totals = Totals()
        totals.add(metrics)
        return totals.reduce(rank)

    return replace(made, accelerator=rank, reduce=reduce)


@in_the_loop("G10", "rollout.experience:whiten_everywhere", rollout_of_two_ranks)
def whitened_by_rank(
    right: Any, accelerator: Any, x: Tensor, mask: Tensor, *, shift_mean: bool = True
) -> Tensor:
    """Advantages are whitened over what one rank sampled: another number of processes, another
    loss."""
    return masked_whiten(x, mask, shift_mean=shift_mean)


class KeepsItsScores(Alone):
    """A rank that gathers from nobody when the scores are one-dimensional."""

    def __init__(self, accelerator: Any) -> None:
        super().__init__(accelerator)
        self.num_processes = accelerator.num_processes

    def gather(self, x: Tensor) -> Any:
        return x if x.ndim == 1 else self.accelerator.gather(x)

    def reduce(self, x: Tensor, reduction: str = "sum") -> Any:
        return self.accelerator.reduce(x, reduction)


@in_the_loop("E11", "rollout.experience:rollout", rollout_of_two_ranks)
def moments_by_rank(right: Any, rollouts: Any, *rest: Any) -> Any:
    """The running mean and deviation of the scores are each rank's own: one reward, two scales."""
    return right(replace(rollouts, accelerator=KeepsItsScores(rollouts.accelerator)), *rest)
