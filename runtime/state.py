"""All that changes from one optimizer step to the next, beside weights and optimizer state."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace

from rollout.state import RolloutState


@dataclass
class TrainState:
    """A run after `step` optimizer steps.

    There are no generators among it: the order of the rows, what is sampled and in which minibatch
    it is trained on are functions of the seed and of a number that is here (data/batches.py,
    rollout/steps.py), no model draws dropout (models/load.py), and the global generators, which a
    reward function may draw from, are seeded at every step.
    """

    step: int = 0  # optimizer steps made, those that were skipped among them
    tokens: int = 0  # response tokens that were trained on, over all ranks
    seconds: float = 0.0  # spent on steps, sampling included, evaluations not
    elapsed: float = 0.0  # since the run began, without the time between its processes
    max_tokens: int = 0  # of a micro-batch: --max_tokens, or what memory allows
    # ---- steps whose loss or gradient was not finite, or jumped, and which changed no weight
    bad_steps: int = 0  # in a row
    skipped: int = 0  # in all
    recent: list[tuple[float, float]] = field(default_factory=list)  # (loss, gradient norm)
    # ---- held-out metrics: before the first step, after step `evaluated`, and the best so far
    before: dict[str, float] = field(default_factory=dict)
    evaluated: int = 0
    heldout: dict[str, float] = field(default_factory=dict)
    best: float | None = None  # --keep_best's metric
    best_step: int = 0
    not_better: int = 0  # evaluations in a row
    # ---- bytes of the logs that are of the steps so far
    logged: dict[str, int] = field(default_factory=dict)
    rollout: RolloutState | None = None  # of a loss that trains on sampled responses

    def copy(self) -> TrainState:
        """As it is now; what it holds of a rollout is never changed in place."""
        return replace(
            self,
            recent=list(self.recent),
            before=dict(self.before),
            heldout=dict(self.heldout),
            logged=dict(self.logged),
            rollout=copy.copy(self.rollout),
        )
