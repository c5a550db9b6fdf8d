"""What is kept of a rollout: the data to train on, and the state that the next one starts from."""

from __future__ import annotations

from dataclasses import dataclass

from data.splits import Split


@dataclass(frozen=True)
class Experience:
    """One rollout as data: this rank's responses, and for every token what the rollout fixed.

    The columns of `split`, (S, T) each and 0 outside the mask, but for the last:

        old_logps       of the policy that sampled, at the sampling temperature
        old_values      of the critic then: V of the state before each token
        advantages, returns
        ref_logps       of the frozen reference; the policy's own where there is none
        policy_weight   (S,) 0 where only the critic learns from this rollout, else 1
    """

    split: Split
    metrics: dict[str, float]  # for the log, over all ranks
    # The responses of all ranks in the order of the prompts, for a checkpoint; None: those of
    # `split` are all. Rank r of n has every n-th of them from the r-th on.
    everyone: Split | None = None


@dataclass
class RolloutState:
    """All that one rollout hands to the next, and what is left of the present one.

    Nothing else changes from step to step: what is drawn follows from the seed and `number`.
    """

    kl_coef: float
    number: int = 0  # of the present rollout, 1 the first; so many have been made
    experience: Experience | None = None  # the present rollout; None where there is none to go on
    next_minibatch: int = 0  # of its passes, the first that has not been trained on
    # Running moments of the scores (Welford), for --score_norm.
    scores_seen: float = 0.0
    score_mean: float = 0.0
    score_m2: float = 0.0
