"""Read the vectors into NumPy arrays: needs NumPy and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

VECTORS = Path(__file__).parent / "vectors"
ORDER = (
    *("sft", "reward", "dpo", "cdpo", "robust", "ipo", "hinge", "orpo", "simpo"),
    *("kl", "gae", "whiten", "policy", "value", "logprobs", "reduce"),
)
Array = NDArray[Any]


@dataclass(frozen=True)
class Expected:
    """Exact numbers, each as a sum of two doubles, and what an error in them is relative to."""

    high: Array
    low: Array
    scale: Array


@dataclass(frozen=True)
class Case:
    """One vector; README.md says what each field means."""

    id: str
    family: str
    function: str
    story: str
    cites: tuple[str, ...]
    dtypes: tuple[str, ...]
    terms: int
    options: dict[str, Any]
    inputs: dict[str, Array]
    cotangents: tuple[Array, ...]
    outputs: dict[str, Expected]
    gradients: dict[str, Expected]
    optional: frozenset[str]  # inputs that an implementation may treat as constants


def families() -> list[str]:
    """Names of the families, in the order of the table."""
    return [name for name in ORDER if (VECTORS / f"{name}.json").exists()]


def functions() -> list[str]:
    """The functions that the families ask for, each once."""
    return list(dict.fromkeys(file["function"] for file in _files()))


def load(only: Collection[str] = (), long: bool = True) -> list[Case]:
    """The cases of all families, or of those named; `long` rows can be left out."""
    files = _files(only)
    for file in files:
        file["cases"] = [case for case in file["cases"] if long or not is_long(case)]
    return [case for file in files for case in cases_of(file)]


def _files(only: Collection[str] = ()) -> list[dict[str, Any]]:
    """The vectors of all families, or of those named, as they stand in their files."""
    wanted = [name for name in families() if name in only or not only]
    return [json.loads((VECTORS / f"{name}.json").read_text("utf-8")) for name in wanted]


def is_long(case: dict[str, Any]) -> bool:
    """Whether a case, as the file has it, has rows of hundreds of tokens."""
    first = next(iter(case["inputs"].values()))
    return max(len(row) if isinstance(row, list) else 1 for row in first) * len(first) >= 500


def cases_of(file: dict[str, Any]) -> Iterator[Case]:
    """The cases of one family, as generate.py makes them."""
    for raw in file["cases"]:
        yield Case(
            raw["id"],
            file["family"],
            file["function"],
            raw["story"],
            tuple(raw["cites"]),
            tuple(raw["dtypes"]),
            raw["terms"],
            raw["options"],
            {name: _input(name, x) for name, x in raw["inputs"].items()},
            tuple(np.array(x["cotangent"], dtype=np.float64) for x in raw["outputs"].values()),
            {name: _expected(x) for name, x in raw["outputs"].items()},
            {name: _expected(x) for name, x in raw["gradients"].items()},
            frozenset(file["gradient_optional"]),
        )


def fingerprint(of: Collection[str]) -> str:
    """sha256 over the vectors of some families: says which ones a result is about.

    Of its own families alone, so that a new family leaves what is known of the others as it is.
    """
    digest = hashlib.sha256()
    for name in families():
        if name in of:
            digest.update((VECTORS / f"{name}.json").read_bytes())
    return digest.hexdigest()


def _input(name: str, x: Any) -> Array:
    dtype = {"mask": np.bool_, "targets": np.int64}.get(name, np.float64)
    return np.array(x, dtype=dtype)


def _expected(x: dict[str, Any]) -> Expected:
    digits = np.array(x["expected"], dtype=object)
    high = digits.astype(np.float64)
    low = [float(Decimal(d) - Decimal(h)) for d, h in zip(digits.flat, high.flat, strict=True)]
    scale = np.array(x["scale"], dtype=np.float64)
    return Expected(high, np.array(low, dtype=np.float64).reshape(high.shape), scale)
