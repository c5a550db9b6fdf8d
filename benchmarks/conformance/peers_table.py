"""PEERS.md's tables from what peers.sh wrote: `python -m benchmarks.conformance.peers_table`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .load import families

RESULTS = Path(__file__).parents[1] / "results"


def reports() -> list[dict[str, Any]]:
    files = sorted(RESULTS.glob("conformance-*.json"))
    return [json.loads(file.read_text("utf-8")) for file in files]


def title(report: dict[str, Any]) -> str:
    """The peer and its version: the first package that its adapter names."""
    package = next(name for name in report["versions"] if name != "python")
    return f"{package} {report['versions'][package]}"


def by_family(of: list[dict[str, Any]], dtype: str = "float32") -> Iterator[str]:
    """Cases passed of those judged, a row for each family and a column for each peer."""
    yield "| " + " | ".join(["", *map(title, of)]) + " |"
    yield "|---" * (len(of) + 1) + "|"
    asked = {row["family"] for report in of for row in report["families"]}
    for family in filter(asked.__contains__, families()):
        cells = []
        for report in of:
            rows = [r for r in report["families"] if (r["family"], r["dtype"]) == (family, dtype)]
            judged = sum(row["cases"] - row["skipped"] for row in rows)
            cells.append(f"{sum(row['passed'] for row in rows)}/{judged}" if judged else "")
        yield "| " + " | ".join([family, *cells]) + " |"


def in_all(of: list[dict[str, Any]]) -> Iterator[str]:
    """Everything in every dtype that a peer's arrays know."""
    yield "| | answers | passed | differ by convention | differ otherwise | not offered |"
    yield "|---|---|---|---|---|---|"
    for report in of:
        meant = sum(row["by_convention"] for row in report["families"])
        passed, failed, skipped = (report[s] for s in ("passed", "failed", "skipped"))
        counts = passed + failed, passed, meant, failed - meant, skipped
        yield f"| {title(report)} | " + " | ".join(map(str, counts)) + " |"


if __name__ == "__main__":
    found = reports()
    print("\n".join([*by_family(found), "", *in_all(found)]))
