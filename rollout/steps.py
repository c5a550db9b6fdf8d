"""PPO's optimizer steps: a rollout, then a few epochs over it, then the next.

`rollout_steps` is a generator: it samples when it is asked for the next step, so with the weights
that the steps before have made. The loop that asks does not know where a batch is from.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence

from data.batches import step_rows
from data.splits import StepRows
from losses.ppo import PPOConfig
from rollout.experience import Prompt, Rollouts, rollout
from rollout.state import RolloutState


def rollout_steps(
    rollouts: Rollouts,
    prompts: Sequence[Prompt],
    *,
    batch_size: int,
    steps: int,
    seed: int,
    state: RolloutState,
) -> Iterator[StepRows]:
    """This rank's responses of every optimizer step, `steps` at most; step 6.

    Continues from `state` and updates it: at a yield it already counts the step that is yielded. A
    rollout left early (--target_kl) is not made up for by another.
    """
    config, accelerator = rollouts.config, rollouts.accelerator
    ranks, rank = accelerator.num_processes, accelerator.process_index
    size = config.rollout_size
    per_epoch = size // batch_size
    per_rollout = config.ppo_epochs * per_epoch
    planned = math.ceil(steps / per_rollout)
    while True:
        # The next rollout, where nothing of the present one is left to train on.
        if state.experience is None or state.next_minibatch == per_rollout:
            if state.number == planned:
                return
            chosen = step_rows(state.number + 1, len(prompts), size, seed)
            mine = range(rank, size, ranks)
            drawn_by = _seed(seed, state.number + 1)
            picked = [prompts[chosen[i]] for i in mine]
            state.experience = rollout(rollouts, picked, list(mine), drawn_by, state)
            state.number, state.next_minibatch = state.number + 1, 0
        if (state.number - 1) * per_rollout + state.next_minibatch == steps:
            return

        # The next of its minibatches. One order for all ranks: which responses meet in a step does
        # not depend on how many ranks there are.
        epoch, place = divmod(state.next_minibatch, per_epoch)
        order = random.Random(f"{seed}/{state.number}/{epoch}").sample(range(size), size)
        minibatch = order[place * batch_size : (place + 1) * batch_size]
        rows = [i // ranks for i in minibatch if i % ranks == rank]
        state.next_minibatch += 1
        yield StepRows(state.experience.split, rows)


def leave_early(state: RolloutState, config: PPOConfig, metrics: Mapping[str, float]) -> None:
    """Train no further on the present rollout if the step just made moved the policy too far."""
    if config.target_kl is not None and metrics["policy/approxkl_avg"] > config.target_kl:
        state.experience = None


def _seed(seed: int, number: int) -> int:
    return random.Random(f"{seed}/rollout {number}").getrandbits(62)
