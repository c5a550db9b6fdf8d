"""What the pocket base model reads: facts, needs, and answers right and wrong alike.

Three kinds of documents, drawn at random:

- facts: what an object is like and what it is not like, doubtful cases left out;
- needs: what kind of object a goal asks for;
- answers: a question in exactly the training format, answered with one of the goal's shown
  objects, right or wrong with equal chance (and, by `rows.py`, so for every object).

So the base knows the world and the format and has not been told to prefer the right answers. The
held-out combinations of a goal and an object never occur.
"""

import random
from collections.abc import Iterator

from .rows import GoalSplit, goal_splits
from .world import (
    OBJECTS,
    PROPERTIES,
    SOLUTIONS,
    lacking,
    question,
    sentence,
    solution,
    with_article,
)

ANSWERS, NEEDS = 0.6, 0.15  # shares of the documents; the rest are facts
FACTS_A_DOCUMENT = 3


def answer(rng: random.Random, split: GoalSplit) -> str:
    name = rng.choice(split.shown_right if rng.random() < 0.5 else split.shown_wrong)
    return f"{question(split.goal)} {solution(rng.choice(SOLUTIONS), name)}"


def need(split: GoalSplit) -> str:
    return f"To {split.goal} you need something that {split.property.is_so}."


def fact(name: str, verb: str) -> str:
    return sentence(f"{with_article(name)} {verb}.")


def facts(rng: random.Random, is_so: list[str], is_not: list[str]) -> str:
    """A few facts about one object. Most lack more than they have; both are told equally often."""
    told = [rng.choice(is_so if rng.random() < 0.5 else is_not) for _ in range(FACTS_A_DOCUMENT)]
    return " ".join(dict.fromkeys(told))


def documents(seed: int) -> Iterator[str]:
    """An endless stream of documents; the reader ends each with EOS."""
    rng = random.Random(seed)
    splits = goal_splits()
    is_so = {o: [fact(o, p.is_so) for p in PROPERTIES if o in p.has] for o in OBJECTS}
    is_not = {o: [fact(o, p.is_not) for p in PROPERTIES if o in lacking(p)] for o in OBJECTS}
    while True:
        kind = rng.random()
        if kind < ANSWERS:
            yield answer(rng, rng.choice(splits))
        elif kind < ANSWERS + NEEDS:
            yield need(rng.choice(splits))
        else:
            name = rng.choice(OBJECTS)
            yield facts(rng, is_so[name], is_not[name])
