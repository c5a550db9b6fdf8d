"""Two models on the same rows: standard errors, and whether they differ (exact McNemar test)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def mean_and_stderr(values: Sequence[float]) -> tuple[float, float | None]:
    """Of independent values; for ones and zeros that is lm-eval's sqrt(p (1 - p) / (n - 1)).

    One value alone has no standard error: None.
    """
    n = len(values)
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(n) if n > 1 else None


def one_sided(a: Sequence[int], b: Sequence[int]) -> tuple[int, int]:
    """On how many rows only `a` is right, and on how many only `b`."""
    pairs = list(zip(a, b, strict=True))
    return pairs.count((1, 0)), pairs.count((0, 1))


def mcnemar(a_only: int, b_only: int) -> float:
    """Exact two-sided p-value: were the two equally good, each such row would be a fair coin.

    Twice the binomial tail from the smaller count on, at most 1; 1 where no row tells them apart.
    McNemar, Psychometrika 12 (1947), without the chi-squared approximation.
    """
    n, fewer = a_only + b_only, min(a_only, b_only)
    tail = sum(math.comb(n, k) for k in range(fewer + 1))
    return float(min(1.0, 2 * tail / 2**n))  # whole numbers, so divided with one rounding
