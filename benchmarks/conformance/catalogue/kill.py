"""Which case rejects a mutant, and by which numbers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.conformance.call import with_torch
from benchmarks.conformance.catalogue.loop.base import LoopMutant, Seen
from benchmarks.conformance.catalogue.mutant import Mutant
from benchmarks.conformance.implementations import ours
from benchmarks.conformance.load import Array, Case, Expected, load
from benchmarks.conformance.runner import BOUND, DTYPES, epsilons, run_one

# Vectors hold numbers, and our own tests hold these: what a mutant without a bug's number does that
# no number shows.
UNSEEN = {
    "dpo_loss-reference_detached": "a gradient that an implementation need not have",
    "ppo_value_loss-targets_detached": "a gradient that an implementation need not have",
    "sft_loss-zeroed_in_place": "a caller's tensor changed where it has no graph",
    "token_logprobs-all_logits_at_once": "memory",
    "token_logprobs-chunks_kept_for_backward": "memory",
    "token_logprobs-no_rows_no_graph": "a batch of no rows",
    "token_logprobs-half_precision_softmax": "bfloat16's own rounding; the check of C18 sees it",
}


@dataclass(frozen=True)
class Kill:
    """The case that rejects a mutant."""

    by: str  # a vector's id, or a check and its options
    about: str  # what the case is for
    given: list[str]  # its inputs, in short
    seen: list[Seen]  # what was not as it must be


@cache
def kill(mutant: Mutant | LoopMutant) -> Kill | None:
    """The smallest case that rejects it, those first that cite its bug; None if none does."""
    return _by_check(mutant) if isinstance(mutant, LoopMutant) else _by_vector(mutant)


# ---------------------------------------------------------------- the loop


def _by_check(mutant: LoopMutant) -> Kill | None:
    off = [seen for seen in mutant.wrong() if seen.off]
    given = [f"{name}={value!r}" for name, value in mutant.options]
    about = " ".join((mutant.check.__doc__ or "").split())
    return Kill(mutant.check.__name__, about, given, [leaf(s) for s in off]) if off else None


def leaf(seen: Seen) -> Seen:
    """Of two long lists the first place where they differ; short ones whole."""
    right, got, place = seen.right, seen.got, ""
    while isinstance(right, list) and isinstance(got, list) and len(right) == len(got):
        if len(repr(right)) <= 60:
            break
        pairs = enumerate(zip(right, got, strict=True))
        i = next(i for i, (a, b) in pairs if Seen("", a, b, seen.within).off)
        right, got, place = right[i], got[i], f"{place}[{i}]"
    return Seen(seen.what + place, right, got, seen.within)


# ---------------------------------------------------------------- the pure functions


@cache
def _cases() -> tuple[Case, ...]:
    """The smaller first."""
    return tuple(sorted(load(), key=lambda case: sum(x.size for x in case.inputs.values())))


def _by_vector(mutant: Mutant) -> Kill | None:
    faint = None
    with implementation(mutant) as (function, wrong):
        cases = [case for case in _cases() if case.function == function]
        cases.sort(key=lambda case: mutant.bug not in case.cites)
        for dtype, case in product(DTYPES, cases):
            if dtype not in case.dtypes:
                continue
            result = run_one(wrong, case, dtype)
            if result.status != "failed":
                continue
            seen = _differences(wrong, case, dtype) or [Seen(result.message, "", "")]
            by = case.id if dtype == "float64" else f"{case.id} in {dtype}"
            found = Kill(by, case.story, _inputs(case), seen)
            if any(Seen(s.what, s.right, s.got, within=1e-5).off for s in seen):
                return found
            faint = faint or found  # off by a few digits: better one that a reader can see
    return faint


@contextmanager
def implementation(mutant: Mutant) -> Iterator[tuple[str, Any]]:
    """(function that the vectors ask for, something that has it) with the mutant in it.

    The masked reductions have no vectors of their own: they are what `reduce` is made of.
    """
    if mutant.of not in ("masked_sum", "masked_mean"):
        yield mutant.of, SimpleNamespace(**{mutant.of: mutant})
        return
    right = getattr(ours, mutant.of)
    setattr(ours, mutant.of, lambda x, mask, dim=-1: mutant(x=x, mask=mask, dim=dim))
    try:
        yield "reduce", ours
    finally:
        setattr(ours, mutant.of, right)


def _differences(wrong: Any, case: Case, dtype: str) -> list[Seen]:
    """The first number that is off in every output and every gradient."""
    try:
        outputs, gradients = with_torch(wrong, case, dtype)
    except Exception:  # the message of the result says it
        return []
    bound = BOUND * math.sqrt(case.terms)
    actual: list[tuple[str, Array | None, Expected]] = [
        (name, out, expected)
        for out, (name, expected) in zip(outputs, case.outputs.items(), strict=True)
    ]
    actual += [
        (f"gradient of {name}", (gradients or {}).get(name), expected)
        for name, expected in case.gradients.items()
    ]
    found = []
    for name, got, expected in actual:
        if got is None:
            if name.removeprefix("gradient of ") not in case.optional:
                found.append(Seen(name, "there is one", "none"))
        elif got.shape != expected.high.shape:
            found.append(Seen(f"shape of {name}", expected.high.shape, got.shape))
        else:
            off = np.argwhere(~(epsilons(got, expected, dtype) <= bound))
            if len(off):
                at = tuple(int(i) for i in off[0])
                place = f"[{', '.join(map(str, at))}]" if at else ""
                found.append(Seen(name + place, float(expected.high[at]), float(got[at])))
    return found


def _inputs(case: Case) -> list[str]:
    """`logps [-1, -2]`, `mask [1, 1]`, `beta 0.1`, defaults too; long ones by their shape."""
    parts = [f"{name} {_table(x)}" for name, x in case.inputs.items()]
    asked = inspect.signature(getattr(ours, case.function)).parameters.values()
    numbers = {p.name: p.default for p in asked if isinstance(p.default, (int, float, str))}
    return [*parts, *(f"{name} {value}" for name, value in (numbers | case.options).items())]


def _table(x: Array) -> str:
    if x.size > 12:
        return f"({' x '.join(map(str, x.shape))})"
    return _nested(x.tolist())


def _nested(x: Any) -> str:
    if isinstance(x, Sequence):
        return f"[{', '.join(map(_nested, x))}]"
    return str(int(x)) if isinstance(x, bool) else f"{x:.8g}"
