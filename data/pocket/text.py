"""What the pocket base model reads: facts, needs, and answers right and wrong alike.

Three kinds of documents, mixed at random:

- facts: what an object is like and what it is not like, doubtful cases left out;
- needs: what kind of object a goal asks for;
- answers: a question in exactly the training format, answered with one of the goal's shown
  objects. They come in rounds; a round goes once through every shown (goal, object), which by
  `rows.py` is as often right as wrong, for every goal and for every object.

So the base knows the world and the format and has not been told to prefer the right answers. The
held-out combinations of a goal and an object never occur.
"""

import random
from collections.abc import Iterator
from typing import TypeVar

from .rows import goal_splits
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

ANSWERS, NEEDS = 0.75, 0.1  # shares of the documents; the rest are facts
FACTS_A_DOCUMENT = 3
T = TypeVar("T")


def rounds(rng: random.Random, items: list[T]) -> Iterator[T]:
    """All items in a random order, then all again in another, without end."""
    while True:
        yield from rng.sample(items, len(items))


def fact(name: str, verb: str) -> str:
    return sentence(f"{with_article(name)} {verb}.")


def documents(seed: int) -> Iterator[str]:
    """An endless stream of documents; the reader ends each with EOS."""
    rng = random.Random(seed)
    splits = goal_splits()
    answers = rounds(rng, [(s.goal, o) for s in splits for o in s.shown_right + s.shown_wrong])
    needs = rounds(
        rng, [f"To {s.goal} you need something that {s.property.is_so}." for s in splits]
    )
    names = rounds(rng, list(OBJECTS))
    is_so = {o: [fact(o, p.is_so) for p in PROPERTIES if o in p.has] for o in OBJECTS}
    is_not = {o: [fact(o, p.is_not) for p in PROPERTIES if o in lacking(p)] for o in OBJECTS}
    while True:
        kind = rng.random()
        if kind < ANSWERS:
            goal, name = next(answers)
            yield f"{question(goal)} {solution(rng.choice(SOLUTIONS), name)}"
        elif kind < ANSWERS + NEEDS:
            yield next(needs)
        else:
            # Most objects lack more than they have; both are told equally often.
            name = next(names)
            told = [rng.choice(rng.choice((is_so, is_not))[name]) for _ in range(FACTS_A_DOCUMENT)]
            yield " ".join(dict.fromkeys(told))
