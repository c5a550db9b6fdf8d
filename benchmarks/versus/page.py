"""The results as a Markdown table and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.figures.style import COLORS, look, panels, save, words

GIB = 2**30


def table(results: dict[str, Any]) -> str:
    """A row a cell, in the order of the results."""
    head = ["cell", "precision", "ours, s", "TRL, s", "TRL / ours [95 %]"]
    head += ["above imports, GiB", "ours / TRL"]
    lines = [head, ["---"] * len(head)]
    lines += [[name, *_cells(cell.get("summary", {}))] for name, cell in results["cells"].items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(summary: dict[str, Any]) -> list[str]:
    if not summary or summary.get("void"):
        largest = summary.get("check", {}).get("largest relative difference")
        why = "not run" if largest is None else f"void: differs by {largest:.1e}"
        return ["–", "–", "–", why, "–", "–"]
    seconds, ratio = summary["seconds"], summary["TRL / ours"]
    precisions = list(dict.fromkeys(summary["precision"].values()))
    low, high = ratio["95 %"]
    memory = summary["peak bytes above imports"]
    return [
        " against ".join(precisions),
        *(f"{seconds[side]:.3g}" for side in ("ours", "trl")),
        f"{ratio['median']:.2f} [{low:.2f}, {high:.2f}]",
        f"{memory['ours'] / GIB:.2f} against {memory['trl'] / GIB:.2f}",
        f"{memory['ours / TRL']:.2f}",
    ]


def draw(results: dict[str, Any], path: Path) -> bool:
    """Bars of time and memory, a cell each; False where no cell has been measured."""
    shown = {
        name: cell["summary"]
        for name, cell in results["cells"].items()
        if cell.get("summary") and not cell["summary"].get("void")
    }
    if not shown:
        return False
    with look():
        figure, axes = panels(1, 2)
        figure.set_figheight(1.4 + 0.33 * len(shown))
        names = list(shown)
        ratios = [shown[name]["TRL / ours"] for name in names]
        middles = [ratio["median"] for ratio in ratios]
        spread = [
            [r["median"] - r["95 %"][0] for r in ratios],
            [r["95 %"][1] - r["median"] for r in ratios],
        ]
        memory = [shown[name]["peak bytes above imports"]["ours / TRL"] for name in names]
        for axis, values, error, color in (
            (axes[0], middles, spread, COLORS[0]),
            (axes[1], memory, None, COLORS[1]),
        ):
            bars = axis.barh(
                names, values, xerr=error, color=color, error_kw={"capsize": 3, "ecolor": "#222222"}
            )
            axis.bar_label(bars, fmt="%.2f", padding=6)
            axis.set_axisbelow(True)
            axis.axvline(1, color="#222222", linestyle=":", linewidth=1)
            axis.set_xlim(0, 1.2 * max(1, *values))
            axis.invert_yaxis()
        words(axes[0], "time", "TRL's seconds / ours, 95 % interval (dotted: equal)", "", None)
        words(axes[1], "memory", "our peak above imports / TRL's (dotted: equal)", "", None)
        save(figure, path)
    return True
