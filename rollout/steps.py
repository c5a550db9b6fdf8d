"""PPO's optimizer steps: a rollout, then a few epochs over it, then the next.

`rollout_steps` is a generator: it samples when it is asked for the next step, so with the weights
that the steps before have made. The loop that asks does not know where a batch is from.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from data.batches import micro_batches, step_rows
from data.encode import Row
from data.trees import Trajectory, TreeBatch, pack, tree_tokens
from rollout.experience import Prompt, Rollouts, RolloutState, rollout


def rollout_steps(
    rollouts: Rollouts,
    prompts: Sequence[Prompt],
    *,
    batch_size: int,
    steps: int,
    seed: int,
    state: RolloutState,
) -> Iterator[list[TreeBatch]]:
    """This rank's micro-batches of every optimizer step, `steps` at most; step 6.

    A rollout left early (--target_kl) is not made up for by another.
    """
    config, accelerator = rollouts.config, rollouts.accelerator
    ranks, rank = accelerator.num_processes, accelerator.process_index
    size = config.rollout_size
    per_rollout = config.ppo_epochs * (size // batch_size)
    for number in range(1, math.ceil(steps / per_rollout) + 1):
        chosen = step_rows(number, len(prompts), size, seed)
        mine = range(rank, size, ranks)
        rows, trajectory = rollout(
            rollouts, [prompts[chosen[i]] for i in mine], list(mine), _seed(seed, number), state
        )
        done = (number - 1) * per_rollout
        for epoch in range(config.ppo_epochs):
            # One order for all ranks: who meets in a step does not depend on how many there are.
            order = random.Random(f"{seed}/{number}/{epoch}").sample(range(size), size)
            for start in range(0, size, batch_size):
                if done == steps:
                    return
                done += 1
                step = order[start : start + batch_size]
                picked = [i // ranks for i in step if i % ranks == rank]
                lengths = [
                    tree_tokens(rows[i], include_last_token=config.bootstraps) for i in picked
                ]
                parts = micro_batches(lengths, 1, rollouts.max_tokens)[
                    0
                ]  # an empty one if none is picked
                yield [
                    _batch(rollouts, rows, trajectory, [picked[p] for p in part]) for part in parts
                ]
                if config.target_kl and state.last_step["policy/approxkl_avg"] > config.target_kl:
                    break
            else:
                continue
            break


def _batch(
    rollouts: Rollouts, rows: Sequence[Row], trajectory: Trajectory, members: Sequence[int]
) -> TreeBatch:
    """Responses and what their rollout says of them; a stand-in that counts nothing if none."""
    include_last_token = rollouts.config.bootstraps
    batch = pack(
        [rows[i] for i in members or [0]],
        layout=rollouts.layout,
        include_last_token=include_last_token,
    )
    batch = batch.to(rollouts.accelerator.device)
    part = trajectory.of(members or [0], batch.mask.shape[1])
    return replace(batch, trajectory=part, dummy=not members)


def _seed(seed: int, number: int) -> int:
    return random.Random(f"{seed}/rollout {number}").getrandbits(62)
