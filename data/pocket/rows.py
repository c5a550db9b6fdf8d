"""Preference pairs of the pocket world, balanced so that only the fit to the goal decides a pair.

Two held-out halves, each balanced in itself:

- seen goals: every (property, object) combination is held out at exactly one of the property's
  seen goals, so the goal and the object both occur in training, never together;
- unseen goals: goals that no training pair asks. The pretraining text asks each of them with one
  half of the objects (right and wrong answers alike); the held-out pairs use the other half.

So neither combination (goal, chosen object) nor (goal, rejected object) of a held-out pair occurs
in a training pair or in a pretraining answer. And because every object is right and wrong at the
same number of goals of each share, knowing the objects without reading the goal is worth nothing.
"""

import random
from dataclasses import dataclass

from .world import (
    OBJECTS,
    PROPERTIES,
    SOLUTIONS,
    UNSEEN_GOALS,
    Property,
    lacking,
    question,
    solution,
)

SEED = 20
PAIRS_PER_OBJECT = 3  # training pairs in which a goal's right (or wrong) object occurs


@dataclass(frozen=True)
class GoalSplit:
    """The right and the wrong objects of one goal: those shown and those held out."""

    goal: str
    property: Property
    seen: bool  # does the goal occur in training pairs?
    shown_right: list[str]
    shown_wrong: list[str]
    held_right: list[str]
    held_wrong: list[str]


def _balanced_wrong() -> dict[str, list[str]]:
    """For every property as many lacking objects as it has objects that have it.

    The choice makes every object wrong for exactly as many properties as it is right for. Greedy:
    the property with the least choice goes first and takes the objects with the fewest other
    places to be wrong. The check at the end would notice if an edited world defeated this.
    """
    to_give = {name: sum(name in p.has for p in PROPERTIES) for name in OBJECTS}
    places = {name: sum(name in lacking(p) for p in PROPERTIES) for name in OBJECTS}
    wrong: dict[str, list[str]] = {}
    for prop in sorted(PROPERTIES, key=lambda p: len(lacking(p)) - len(p.has)):
        candidates = [name for name in lacking(prop) if to_give[name]]
        candidates.sort(key=lambda name: places[name] - to_give[name])
        wrong[prop.name] = candidates[: len(prop.has)]
        for name in wrong[prop.name]:
            to_give[name] -= 1
        for name in lacking(prop):
            places[name] -= 1
    if any(to_give.values()):
        raise AssertionError(f"no balanced choice of wrong objects: {to_give}")
    return wrong


def goal_splits() -> list[GoalSplit]:
    """Every goal with its shown and its held-out objects."""
    rng = random.Random(SEED)
    wrong = _balanced_wrong()
    splits = []
    for prop in PROPERTIES:
        pools = [list(prop.has), wrong[prop.name]]
        for pool in pools:
            rng.shuffle(pool)
        n_seen = len(prop.goals) - UNSEEN_GOALS
        for number, goal in enumerate(prop.goals):
            seen = number < n_seen
            # Round robin: each object is held out at one seen goal and at one unseen goal.
            turn, turns = (number, n_seen) if seen else (number - n_seen, UNSEEN_GOALS)
            held = [[o for i, o in enumerate(pool) if i % turns == turn] for pool in pools]
            shown = [[o for i, o in enumerate(pool) if i % turns != turn] for pool in pools]
            splits.append(GoalSplit(goal, prop, seen, *shown, *held))
    return splits


def _pairs(
    split: GoalSplit, right: list[str], wrong: list[str], times: int
) -> list[dict[str, str]]:
    """Pair off the two equally long lists `times` times, each object once a time."""
    rng = random.Random(f"{SEED} {split.goal}")
    rows = []
    for shift in range(times):
        for i, good in enumerate(right):
            bad = wrong[(i + shift) % len(wrong)]
            first = rng.choice(SOLUTIONS)
            second = first if rng.random() < 0.5 else rng.choice(SOLUTIONS)
            rows.append(
                {
                    "prompt": question(split.goal),
                    "chosen": " " + solution(first, good),
                    "rejected": " " + solution(second, bad),
                }
            )
    return rows


def train_rows() -> list[dict[str, str]]:
    """Training pairs (prompt, chosen, rejected), goal by goal; the loader shuffles."""
    return [
        row
        for s in goal_splits()
        if s.seen
        for row in _pairs(s, s.shown_right, s.shown_wrong, PAIRS_PER_OBJECT)
    ]


def heldout_rows() -> list[dict[str, str]]:
    """Held-out pairs; half ask a seen goal about unseen combinations, half ask an unseen goal."""
    return [row for s in goal_splits() for row in _pairs(s, s.held_right, s.held_wrong, 1)]


def train_prompts() -> list[str]:
    """The distinct questions of the training pairs."""
    return [question(s.goal) for s in goal_splits() if s.seen]


def heldout_prompts() -> list[str]:
    """The distinct questions of the unseen goals: for sampling, whose answers `grade` judges."""
    return [question(s.goal) for s in goal_splits() if not s.seen]
