"""The mutation score of what `mutmut run` found, and why some mutants may survive.

    python -m mutmut run
    python -m benchmarks.mutation benchmarks/results/mutation.json

Survivors are listed in the results file. One that changes nothing that could be observed is given
its reason there by hand, under "equivalent"; the reason is kept for as long as the mutant survives.
Ends with exit code 1 while a part is below its GOAL.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.record import commit, machine

ROOT = Path(__file__).resolve().parent.parent
PARTS = {  # what the names of its mutants begin with
    "losses": ("losses.",),
    "rollout": ("rollout.",),
    "reduction": ("runtime.metrics.", "train.x_optimizer_step__", "train.x_count_units__"),
}
GOAL = {"losses": 1.0, "rollout": 0.9, "reduction": 0.9}  # share of the non-equivalent mutants
KILLED = {1, 3, 36, 24, -24, 152, 255}  # a test failed (1, 3), or the mutant never came to an end
NOT_RUN = None


def read(folder: Path) -> dict[str, int | None]:
    """{mutant: exit code of its tests}; 0: all passed, 33: no test calls the function."""
    found: dict[str, int | None] = {}
    for meta in sorted(folder.rglob("*.py.meta")):
        found |= json.loads(meta.read_text("utf-8"))["exit_code_by_key"]
    return found


def change(folder: Path, mutant: str) -> dict[str, str]:
    """The mutant's function, and its line before and after; lines as `ast.unparse` writes them."""
    module, _, generated = mutant.rpartition(".")
    function = generated.rpartition("__mutmut_")[0]
    tree = ast.parse((folder / (module.replace(".", "/") + ".py")).read_text("utf-8"))
    defined = {n.name: n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    plain = function.removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
    lines = []
    for name in (f"{function}__mutmut_orig", generated):
        defined[name].name = plain.rpartition(".")[2]
        lines.append(ast.unparse(defined[name]).splitlines())
    marked = list(difflib.ndiff(lines[0], lines[1]))
    before, after = (
        " / ".join(line[2:].strip() for line in marked if line[0] == sign) for sign in "-+"
    )
    return {"function": f"{module}.{plain}", "before": before, "after": after}


def part_of(mutant: str) -> str | None:
    return next((part for part, starts in PARTS.items() if mutant.startswith(starts)), None)


def summary(folder: Path, reasons: dict[str, str]) -> dict[str, Any]:
    """Counts and score of every part, its equivalent mutants and its other survivors."""
    verdicts = {m: code for m, code in read(folder).items() if part_of(m)}
    counts = {part: Counter[str]() for part in PARTS}
    equivalent: list[dict[str, str]] = []
    survivors: list[dict[str, str]] = []
    for mutant, code in verdicts.items():
        count = counts[str(part_of(mutant))]
        count["mutants"] += 1
        if code is NOT_RUN:
            count["not run"] += 1
        elif code in KILLED:
            count["killed"] += 1
        else:
            found = change(folder, mutant)
            why = reasons.get(json.dumps(found))
            count["survived" if why is None else "equivalent"] += 1
            (survivors if why is None else equivalent).append(found | ({"why": why} if why else {}))
    parts = {
        part: dict(count) | {"score": count["killed"] / (count["mutants"] - count["equivalent"])}
        for part, count in counts.items()
        if count
    }
    return {"parts": parts, "equivalent": equivalent, "survivors": survivors}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", type=Path, help="the file to bring up to date")
    parser.add_argument("--mutants", type=Path, default=ROOT / "mutants", help="mutmut's folder")
    parser.add_argument("--note", default="", help="what a reader must know of these numbers")
    args = parser.parse_args()
    old = json.loads(args.results.read_text("utf-8")) if args.results.exists() else {}
    reasons = {
        json.dumps({k: one[k] for k in ("function", "before", "after")}): one["why"]
        for one in old.get("equivalent", [])
    }
    new = {
        "note": args.note,
        "command": "python -m mutmut run",
        "commit": commit(),
        "versions": {name: version(name) for name in ("mutmut", "torch", "transformers")},
        "machine": machine(),
    } | summary(args.mutants, reasons)
    args.results.write_text(json.dumps(new, indent=1, ensure_ascii=False) + "\n", "utf-8")
    for part, found in new["parts"].items():
        print(part, found)
    return int(any(found["score"] < GOAL[part] for part, found in new["parts"].items()))


if __name__ == "__main__":
    sys.exit(main())
