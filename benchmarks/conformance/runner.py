"""Hold an implementation against the vectors: `run` for programs, `summary` for the table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .call import EPSILONS, TINY, Gradients, caller
from .load import Array, Case, Expected

DTYPES = tuple(EPSILONS)
BOUND = 4  # epsilons of the dtype, times the square root of the case's number of terms

Status = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Result:
    """One case in one dtype.

    `value` and `gradient` are the largest error in epsilons of the dtype, relative to each number's
    scale: nan for a nan, inf for an infinity or for a wrong number where 0 is exact. None: not
    judged (a gradient that nobody asks for, or that the implementation does not offer).
    """

    case: Case
    dtype: str
    status: Status
    value: float | None = None
    gradient: float | None = None
    message: str = ""  # the first thing that is wrong, or why it was skipped
    convention: str = ""  # the implementation says that it differs here on purpose

    @property
    def bound(self) -> float:
        return BOUND * math.sqrt(self.case.terms)


def run(implementation: Any, cases: Iterable[Case], dtypes: Sequence[str] = DTYPES) -> list[Result]:
    """Every case in every dtype that both the case and the implementation's arrays know.

    Args:
        implementation: a module or namespace with functions by our names; see README.md.
        cases: from `load`.
        dtypes: some of "float64", "float32", "bfloat16".

    Raises:
        ValueError: its ARRAYS is neither "torch" nor "numpy", or its CONVENTIONS or VERSIONS is
            no dict of strings.
    """
    _, possible = caller(implementation)
    for name in ("CONVENTIONS", "VERSIONS"):
        texts = getattr(implementation, name, {})
        if not isinstance(texts, dict) or not all(
            isinstance(text, str) for pair in texts.items() for text in pair
        ):
            raise ValueError(f"{name} = {texts!r} must be a dict of strings")
    return [
        run_one(implementation, case, dtype)
        for case in cases
        for dtype in dtypes
        if dtype in case.dtypes and dtype in possible
    ]


def run_one(implementation: Any, case: Case, dtype: str) -> Result:
    if not hasattr(implementation, case.function):
        return Result(case, dtype, "skipped", message=f"has no {case.function}")
    conventions = getattr(implementation, "CONVENTIONS", {})
    convention = conventions.get(case.id) or conventions.get(case.family, "")
    call, _ = caller(implementation)
    try:
        outputs, gradients = call(implementation, case, dtype)
    except NotImplementedError as error:
        return Result(case, dtype, "skipped", message=str(error) or "not implemented")
    except (Exception, SystemExit) as error:  # whatever it is, it is the implementation's answer
        lines = str(error).strip().splitlines() or [""]
        message = f"{type(error).__name__}: {lines[0]}"
        return Result(case, dtype, "failed", message=message, convention=convention)
    return judge(case, dtype, outputs, gradients, convention)


def judge(
    case: Case,
    dtype: str,
    outputs: list[Array],
    gradients: Gradients | None,
    convention: str = "",
) -> Result:
    bound, wrong = BOUND * math.sqrt(case.terms), []
    worst: dict[str, float | None] = {"value": None, "gradient": None}

    def hold(kind: str, name: str, actual: Array, expected: Expected) -> None:
        if actual.shape != expected.high.shape:
            error: float = math.inf
            wrong.append(f"{name} has shape {actual.shape}, expected {expected.high.shape}")
        else:
            errors = epsilons(actual, expected, dtype)
            error = max(errors.max(), 0.0) if errors.size else 0.0
            bad = np.argwhere(~(errors <= bound))
            if len(bad):
                at = tuple(int(i) for i in bad[0])
                place = f"{name}[{', '.join(map(str, at))}]" if at else name
                wrong.append(f"{place} is {_apart(float(actual[at]), float(expected.high[at]))}")
        before = worst[kind]
        worst[kind] = float(np.max([error] if before is None else [before, error]))  # keeps nan

    for actual, (name, expected) in zip(outputs, case.outputs.items(), strict=True):
        hold("value", name, actual, expected)
    if gradients is not None:
        for name, expected in case.gradients.items():
            gradient = gradients[name]
            if gradient is not None:
                hold("gradient", f"gradient of {name}", gradient, expected)
            elif name not in case.optional:
                wrong.append(f"no gradient reaches {name}")
                worst["gradient"] = math.inf
    status: Status = "failed" if wrong else "passed"
    message = wrong[0] if wrong else ""
    return Result(
        case, dtype, status, worst["value"], worst["gradient"], message, convention if wrong else ""
    )


def epsilons(actual: Array, expected: Expected, dtype: str) -> Array:
    """Error of every number in epsilons of the dtype, relative to its scale.

    Less than the smallest normal number of the dtype is no error: there is nothing between.
    """
    with np.errstate(all="ignore"):
        error = np.abs((actual - expected.high) - expected.low)
        units: Array = error / (EPSILONS[dtype] * expected.scale)
    units = np.where(np.isnan(actual), np.nan, np.where(np.isnan(units), np.inf, units))
    return np.where(error <= TINY[dtype], 0.0, units)


def _apart(actual: float, expected: float) -> str:
    """Both with as few digits as tell them apart."""
    few, many = (f"{actual:.{n}g}, expected {expected:.{n}g}" for n in (6, 17))
    return many if f"{actual:.6g}" == f"{expected:.6g}" else few
