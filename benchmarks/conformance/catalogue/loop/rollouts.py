"""A world for rollouts: a tiny actor and critic, a tokenizer of numbers, a reward of the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import train
from benchmarks.conformance.catalogue.loop.base import exchanged
from benchmarks.conformance.catalogue.loop.world import END, alone, one_process, tiny
from data.encode import Row
from data.trees import Trajectory, TreeBatch
from losses.forward import ActorCritic, Policy
from losses.ppo import LOSS, PPOConfig
from rollout import experience, steps
from rollout.experience import Prompt, Rollouts, RolloutState
from runtime.metrics import Totals

PROMPTS = [[5, 6, 7], [8], [3, 4], [6, 9, 3, 4]]


class Numbers:
    """A tokenizer whose tokens are called by their numbers."""

    eos_token_id = END

    def convert_tokens_to_ids(self, token: str) -> int:
        return int(token)

    def convert_ids_to_tokens(self, number: int) -> str:
        return str(number)

    def decode(self, tokens: Sequence[int], **_: Any) -> str:
        return " ".join(map(str, tokens))


def sum_of_numbers(prompts: list[str], responses: list[str]) -> list[float]:
    """Between -1/2 and 1/2; 0 is as frequent as any."""
    return [(sum(map(int, text.split())) % 5 - 2) / 4 for text in responses]


def prompts() -> list[Prompt]:
    return [Prompt(Numbers().decode(tokens), tokens) for tokens in PROMPTS]


def make(config: PPOConfig, accelerator: Any = None, reward: Any = sum_of_numbers) -> Rollouts:
    """Policy and reference differ; the critic is another model, with a head of its own."""
    accelerator = accelerator or one_process()

    def reduce(metrics: Any) -> dict[str, float]:
        totals = Totals()
        totals.add(metrics)
        return totals.reduce(accelerator)

    policy = tiny()
    module = ActorCritic(
        Policy(policy), tiny("token", seed=1), temperature=config.temperature, entropy=False
    )
    words: Any = Numbers()
    return Rollouts(
        accelerator,
        module,
        policy,
        Policy(tiny(seed=2)),
        reward,
        words,
        config,
        "tree",
        4096,
        reduce,
    )


@dataclass(frozen=True)
class Done:
    """A rollout, and what it told."""

    made: Rollouts
    rows: list[Row]
    trajectory: Trajectory
    metrics: dict[str, float]
    state: RolloutState

    def ragged(self, values: Tensor) -> list[list[float]]:
        """(S, T) as each response's own."""
        return [v[: len(r.responses[0])].tolist() for v, r in zip(values, self.rows, strict=True)]


def one_rollout(config: PPOConfig, accelerator: Any = None, made: Rollouts | None = None) -> Done:
    """Of this rank's share of the four prompts."""
    made = made or make(config, accelerator)
    state = RolloutState(kl_coef=config.kl_coef)
    ranks, rank = made.accelerator.num_processes, made.accelerator.process_index
    numbers = list(range(rank, len(PROMPTS), ranks))
    mine = [prompts()[i] for i in numbers]
    rows, trajectory = experience.rollout(made, mine, numbers, 7, state)
    return Done(made, rows, trajectory, state.metrics, state)


@dataclass(frozen=True)
class Trained:
    """The optimizer steps of one rollout of four responses, two a step, two epochs."""

    rows: list[list[int]]  # of every step
    metrics: list[dict[str, float]]
    old_logps: list[dict[int, list[float]]]  # of every row in every step
    sampled: list[list[float]]  # the rollout's own


def trained(config: PPOConfig, rate: float = 0.05) -> Trained:
    made = make(config)
    module, accelerator = made.actor_critic, made.accelerator
    optimizer = torch.optim.SGD(module.parameters(), lr=rate)
    state = RolloutState(kl_coef=config.kl_coef)
    kept: list[Done] = []

    def recorded(right: Any, *args: Any) -> Any:
        rows, trajectory = right(*args)
        kept.append(Done(made, rows, trajectory, {}, state))
        return rows, trajectory

    found = Trained([], [], [], [])
    options: Any = dict(batch_size=2, steps=4, seed=0, state=state)
    with exchanged("rollout.steps:rollout", recorded):
        for batches in steps.rollout_steps(made, prompts(), **options):
            _, metrics = train.optimizer_step(accelerator, module, LOSS, config, batches)
            optimizer.step()
            optimizer.zero_grad()
            state.last_step = metrics
            found.metrics.append(metrics)
            found.rows.append([int(i) for batch in batches for i in batch.index])
            found.old_logps.append({k: v for batch in batches for k, v in _old(batch).items()})
    found.sampled.extend(kept[0].ragged(kept[0].trajectory.old_logps))
    return found


def _old(batch: TreeBatch) -> dict[int, list[float]]:
    """Old log-probs of a batch, by row."""
    assert batch.trajectory is not None
    tables = zip(batch.index.tolist(), batch.trajectory.old_logps, batch.mask, strict=True)
    return {row: logps[mask].tolist() for row, logps, mask in tables}


# ---------------------------------------------------------------- by hand


@torch.no_grad()
def logps_by_hand(model: Any, row: Row, temperature: float) -> list[float]:
    """Log-probs of one response by itself, of logits divided by the temperature."""
    if temperature == 1:
        return alone(model, row.prompt, row.responses[0]).tolist()
    ids = row.prompt + row.responses[0]
    logits = model(torch.tensor([ids])).logits[0, len(row.prompt) - 1 : -1] / temperature
    logps = logits.log_softmax(-1)
    return [logps[t, token].item() for t, token in enumerate(row.responses[0])]


@torch.no_grad()
def values_by_hand(critic: Any, row: Row) -> list[float]:
    """V of the state before each token, by the critic on one sequence."""
    logits = critic(torch.tensor([row.prompt + row.responses[0]])).logits[0, :, 0]
    values: list[float] = logits[len(row.prompt) - 1 : -1].tolist()
    return values
