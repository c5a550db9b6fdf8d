"""A run as a person reads it, and as JSON."""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from textwrap import wrap
from typing import Any

from .load import fingerprint
from .runner import BOUND, DTYPES, Result

WIDTH = 100


def lines(name: str, results: Sequence[Result]) -> Iterator[str]:
    """The table, what was skipped, and the first failing case of each family with its story."""
    dtypes = [d for d in DTYPES if any(r.dtype == d for r in results)]
    yield f"{name}: {len({r.case.id for r in results})} cases"
    yield ""
    yield f"{'':10}" + "".join(f"{dtype:^26}" for dtype in dtypes).rstrip()
    yield (
        f"{'family':10}"
        + "".join(f"{'passed':>9}{'value':>8}{'grad':>7}  " for _ in dtypes).rstrip()
    )
    for family in dict.fromkeys(r.case.family for r in results):
        of_family = [r for r in results if r.case.family == family]
        cells = [_cell([r for r in of_family if r.dtype == dtype]) for dtype in dtypes]
        yield f"{family:10}" + "".join(cells).rstrip()
    yield ""
    yield "value, grad: worst error in epsilons of the dtype, relative to each number's scale;"
    yield f"a case passes within {BOUND} sqrt(terms). `-` was not judged."
    skipped = Counter((r.case.family, r.message) for r in results if r.status == "skipped")
    for (family, why), count in skipped.items():
        line = f"skipped: {family}, {_times(count)}: {why}"
        yield from wrap(line, WIDTH, subsequent_indent="    ")
    yield from _failures(results)


def _cell(results: list[Result]) -> str:
    judged = [r for r in results if r.status != "skipped"]
    passed = sum(r.status == "passed" for r in judged)
    share = f"{passed}/{len(judged)}" if judged else "-"
    mark = " " if passed == len(judged) else "!"
    value, gradient = (_worst(judged, kind) for kind in ("value", "gradient"))
    return f"{share:>9}{_short(value):>8}{_short(gradient):>7}{mark} "


def _worst(results: Sequence[Result], kind: str) -> float | None:
    found = [x for r in results if (x := getattr(r, kind)) is not None]
    return (math.nan if any(map(math.isnan, found)) else max(found)) if found else None


def _short(x: float | None) -> str:
    """At most six characters."""
    if x is None:
        return "-"
    if x == 0 or not math.isfinite(x):
        return f"{x:.0f}"
    return f"{x:.2f}" if x < 10 else f"{x:.0f}" if x < 1e4 else f"{x:.0e}"


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"


def _failures(results: Sequence[Result]) -> Iterator[str]:
    failed = [r for r in results if r.status == "failed"]
    for family in dict.fromkeys(r.case.family for r in failed):
        of_family = [r for r in failed if r.case.family == family]
        first = min(of_family, key=lambda r: DTYPES.index(r.dtype))  # the widest that shows it
        cites = f" ({', '.join(first.case.cites)})" if first.case.cites else ""
        yield ""
        yield f"{family}: {_times(len(of_family))} wrong, first {first.case.id} in {first.dtype}"
        notes = [first.message, f"the case: {first.case.story}{cites}"]
        conventions = dict.fromkeys(r.convention for r in of_family if r.convention)
        for note in (*notes, *(f"by convention: {text}" for text in conventions)):
            yield from wrap(note, WIDTH, initial_indent="    ", subsequent_indent="      ")


def report(name: str, implementation: Any, results: Sequence[Result]) -> dict[str, Any]:
    """Everything the table says and every case that did not pass, ready for JSON."""
    rows = []
    for family, dtype in dict.fromkeys((r.case.family, r.dtype) for r in results):
        cell = [r for r in results if (r.case.family, r.dtype) == (family, dtype)]
        rows.append(
            {
                "family": family,
                "dtype": dtype,
                "cases": len(cell),
                **{s: sum(r.status == s for r in cell) for s in ("passed", "failed", "skipped")},
                "by_convention": sum(bool(r.convention) for r in cell),
                "gradients_judged": sum(r.gradient is not None for r in cell),
                "worst_value": _json(_worst(cell, "value")),
                "worst_gradient": _json(_worst(cell, "gradient")),
            }
        )
    vectors = fingerprint({r.case.family for r in results})
    versions = {"python": platform.python_version(), **getattr(implementation, "VERSIONS", {})}
    return {
        "implementation": name,
        "versions": versions,
        "vectors": {"sha256": vectors, "bound": f"{BOUND} sqrt(terms) epsilons of scale"},
        "cases": len({r.case.id for r in results}),
        **{s: sum(r.status == s for r in results) for s in ("passed", "failed", "skipped")},
        "families": rows,
        "not_passed": [
            {
                "id": r.case.id,
                "dtype": r.dtype,
                "status": r.status,
                "value": _json(r.value),
                "gradient": _json(r.gradient),
                "bound": round(r.bound, 2),
                "message": r.message,
                "convention": r.convention,
            }
            for r in results
            if r.status != "passed"
        ],
    }


def _json(x: float | None) -> float | str | None:
    """JSON has no nan and no inf: as strings."""
    return x if x is None or math.isfinite(x) else str(x)
