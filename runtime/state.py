"""All that changes from one optimizer step to the next, beside weights and optimizer state."""

from __future__ import annotations

from dataclasses import dataclass, field

from rollout.state import RolloutState


@dataclass
class TrainState:
    """A run after `step` optimizer steps.

    There are no generators among it: the order of the rows, what is sampled and in which minibatch
    it is trained on are functions of the seed and of a number that is here (data/batches.py,
    rollout/steps.py), and no model draws dropout (models/load.py).
    """

    step: int = 0  # optimizer steps made
    tokens: int = 0  # response tokens of this rank that were trained on
    seconds: float = 0.0  # spent on steps, sampling included, evaluations not
    bad_steps: int = 0  # in a row, whose loss or gradient was not finite
    evaluated: int = 0  # the step after which the held-out rows were last evaluated
    heldout: dict[str, float] = field(default_factory=dict)  # and what was found
    rollout: RolloutState | None = None  # of a loss that trains on sampled responses
