"""From the runs of a cell to its line: are both the same training, and how much faster is one.

A run is what `processes.py` and `trl_child.py` give: `ends`, the times at which its steps ended,
`losses`, `metrics` of the first step, `peak_bytes`, `imports_bytes`, `first_step` and `finished` in
seconds since it was launched.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.runs import durations
from benchmarks.versus.cells import COMPARED, SAME, SAME_METRICS, Cell

RESAMPLES = 10_000
Run = dict[str, Any]


def seconds_of(cell: Cell, run: Run) -> float:
    """The one number that is compared."""
    if cell.clock != "step":
        return float(run[cell.clock])
    each = durations(run["ends"], cell.warm_up)
    return statistics.mean(each) if cell.statistic == "mean" else statistics.median(each)


def interval(ratios: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % of the medians of resampled ratios (percentile bootstrap over the pairs of runs)."""
    drawn = np.random.default_rng(seed).choice(np.asarray(ratios), (RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(low), float(high)


def check(cell: Cell, ours: Run, trl: Run, exact: Sequence[float] = ()) -> dict[str, Any]:
    """Whether two runs are the same training, by the losses of their first steps; else void.

    Args:
        exact: TRL's first losses in float32, where `trl` is in bfloat16.
    """
    tolerance = cell.tolerance(trl["precision"])
    if cell.kind == "ppo":
        return {"void": False, "compared": "nothing: each side samples its own responses"}
    compared = list(zip(ours["losses"], trl["losses"], strict=True))[:COMPARED]
    largest = max(_relative(*pair) for pair in compared)
    found: dict[str, Any] = {"compared": len(compared), "tolerance": tolerance}
    for mine, theirs in SAME_METRICS.get(cell.loss, {}).items():
        pair = ours["metrics"][mine], trl["metrics"][theirs]
        found[mine], largest = pair, max(largest, _relative(*pair))
    found["largest relative difference"] = largest
    found["void"] = largest > tolerance
    if exact and ours["precision"] == "float32":
        both = list(zip(ours["losses"], exact, strict=False))
        found["in float32"] = max(_relative(*pair) for pair in both)
        if found["in float32"] > SAME:
            found |= {"void": True, "largest relative difference": found["in float32"]}
            compared = both
    if found["void"]:
        found["losses"] = compared
    return found


def _relative(a: float | None, b: float | None) -> float:
    """Difference of two numbers, infinite where one is none; metrics.jsonl has null for NaN."""
    if a is None or b is None or not math.isfinite(a - b):
        return math.inf
    return abs(a - b) / max(abs(a), abs(b), 1e-12)


def pairs_of(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """(ours, TRL's) of every pair that is whole."""
    by = {(run["pair"], run["side"]): run for run in runs}
    numbers = sorted({pair for pair, _ in by})
    return [
        (by[n, "ours"], by[n, "trl"]) for n in numbers if (n, "ours") in by and (n, "trl") in by
    ]


def summarize(cell: Cell, runs: Sequence[Run], exact: Sequence[float] = ()) -> dict[str, Any]:
    """A cell's line; {} before its first pair is whole. A void cell has no ratio.

    `exact` is that of `check`.
    """
    pairs = pairs_of(runs)
    if not pairs:
        return {}
    checks = [check(cell, *pair, exact) for pair in pairs]
    worst = max(checks, key=lambda c: (c["void"], c.get("largest relative difference", 0)))
    found: dict[str, Any] = {"pairs": len(pairs), "check": worst}
    found["precision"] = {side: pairs[0][i]["precision"] for i, side in enumerate(("ours", "trl"))}
    if worst["void"]:
        return found | {"void": True}
    seconds = [(seconds_of(cell, ours), seconds_of(cell, trl)) for ours, trl in pairs]
    ratios = [trl / ours for ours, trl in seconds]
    clock = f"{cell.statistic} step" if cell.clock == "step" else cell.clock
    found["seconds"] = {
        "of": "rollout" if cell.kind == "ppo" else clock,
        **{side: statistics.median(column) for side, column in _columns(seconds)},
    }
    found["TRL / ours"] = {
        "median": statistics.median(ratios),
        "95 %": interval(ratios),
        "each": ratios,
    }
    if cell.kind == "ppo":
        found["samples a second"] = {
            side: cell.batch_size / value
            for side, value in found["seconds"].items()
            if side != "of"
        }
    found["peak bytes"] = _median_of(pairs, lambda run: run["peak_bytes"])
    above = _median_of(pairs, lambda run: run["peak_bytes"] - run["imports_bytes"])
    found["peak bytes above imports"] = above | {"ours / TRL": above["ours"] / above["trl"]}
    if shares := [share for ours, _ in pairs if (share := sgemm_share(cell, ours)) is not None]:
        found["share of the sgemm peak"] = statistics.median(shares)
    return found


def sgemm_share(cell: Cell, ours: Run) -> float | None:
    """Floor FLOPs of the counted steps, of what sgemm does in their time; None: not for this cell.

    Sums, not medians: steps differ in their tokens.
    """
    if "floor_flops" not in ours or cell.kind != "steps" or cell.row == "bf16":
        return None
    seconds = sum(durations(ours["ends"], cell.warm_up))
    return float(ours["floor_flops"] / (seconds * ours["sgemm"]))


def _columns(pairs: Sequence[tuple[float, float]]) -> list[tuple[str, tuple[float, ...]]]:
    return list(zip(("ours", "trl"), zip(*pairs, strict=True), strict=True))


def _median_of(pairs: Sequence[tuple[Run, Run]], number: Any) -> dict[str, float]:
    columns = _columns([(number(ours), number(trl)) for ours, trl in pairs])
    return {side: statistics.median(values) for side, values in columns}
