"""The mutation score of what `mutmut run` found, and why some mutants may survive.

    python -m mutmut run 'losses.*'
    python -m benchmarks.mutation benchmarks/results/mutation.json

Survivors are listed in the results file. One that changes nothing that could be observed is given
its reason there by hand, under "equivalent"; the reason is kept until the mutant is killed or gone.
A file of which no mutant was run keeps its last counts, with the commit that they are of. Ends with
exit code 1 while a part is below its GOAL, not there or not all run, and with 2, the results file
untouched, if no mutant was run.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import sys
from collections import Counter
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.record import commit, machine

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("losses", "models", "rollout", "runtime", "train")  # folders, and train.py
GOAL = dict.fromkeys(PARTS, 0.95) | {"losses": 1.0}  # share of the non-equivalent mutants
KILLED = {1, 3, 36, 24, -24, 152, 255}  # a test failed (1, 3), or the mutant never came to an end
NOT_RUN = None


def read(folder: Path) -> dict[str, int | None]:
    """{mutant: exit code of its tests}; 0: all passed, 33: no test calls the function."""
    found: dict[str, int | None] = {}
    for meta in sorted(folder.rglob("*.py.meta")):
        found |= json.loads(meta.read_text("utf-8"))["exit_code_by_key"]
    return found


def function_of(mutant: str) -> str:
    """The function that it is a mutant of, such as `models.forward.Scorer.forward`."""
    module, _, generated = mutant.rpartition(".")
    function = generated.rpartition("__mutmut_")[0]
    return f"{module}.{function.removeprefix('x_').removeprefix('xǁ').replace('ǁ', '.')}"


def is_there(name: str) -> bool:
    """Whether the file that the module or function is of still is."""
    parts = name.split(".")
    return any(
        ROOT.joinpath(*parts[:n]).with_suffix(".py").exists() for n in range(1, 1 + len(parts))
    )


def part_of(name: str) -> str | None:
    part = name.partition(".")[0]
    return part if part in PARTS else None


@lru_cache(maxsize=1)  # seconds for a large file, and its mutants come one after the other
def functions(file: Path) -> dict[str, ast.FunctionDef]:
    """A file's functions and methods by their generated names."""
    tree = ast.parse(file.read_text("utf-8"))
    return {n.name: n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}


def change(folder: Path, mutant: str) -> dict[str, str]:
    """The mutant's function, and its line before and after; lines as `ast.unparse` writes them."""
    module, _, generated = mutant.rpartition(".")
    function = function_of(mutant)
    defined = functions(folder / (module.replace(".", "/") + ".py"))
    lines = []
    for name in (f"{generated.rpartition('__mutmut_')[0]}__mutmut_orig", generated):
        defined[name].name = function.rpartition(".")[2]
        lines.append(ast.unparse(defined[name]).splitlines())
    marked = list(difflib.ndiff(lines[0], lines[1]))
    before, after = (
        " / ".join(line[2:].strip() for line in marked if line[0] == sign) for sign in "-+"
    )
    return {"function": function, "before": before, "after": after}


def by_module(verdicts: dict[str, int | None]) -> dict[str, dict[str, int | None]]:
    """The verdicts on the mutants of each module that counts."""
    found: dict[str, dict[str, int | None]] = {}
    for mutant, code in verdicts.items():
        module = mutant.rpartition(".")[0]
        if part_of(module):
            found.setdefault(module, {})[mutant] = code
    return found


def modules_run(folder: Path) -> set[str]:
    """Those of which at least one mutant was run."""
    modules = by_module(read(folder)).items()
    return {m for m, codes in modules if any(code is not NOT_RUN for code in codes.values())}


def with_score(count: Counter[str]) -> dict[str, Any]:
    to_kill = count["mutants"] - count["equivalent"]
    return dict(count) | {"score": count["killed"] / to_kill if to_kill else 1.0}


def summary(folder: Path, old: dict[str, Any]) -> dict[str, Any]:
    """Counts and score of every part and file, equivalent mutants and other survivors.

    What was not run this time stays as the old results file has it: a file with all its entries,
    marked with the commit that it was run at, and a single mutant with its reason.
    """
    verdicts, run = by_module(read(folder)), modules_run(folder)
    files: dict[str, dict[str, Any]] = {
        module: {"commit": old.get("commit")} | count
        for module, count in old.get("files", {}).items()
        if module not in run and is_there(module)
    }
    reasons = {}
    kept: dict[str, list[dict[str, str]]] = {"equivalent": [], "survivors": []}
    for kind, ones in kept.items():
        for one in old.get(kind, []):
            function = one["function"]
            if kind == "equivalent":
                reasons[function, one["before"], one["after"]] = one["why"]
            of_run = any(function.startswith(f"{module}.") for module in run)
            if not of_run and part_of(function) and is_there(function):
                ones.append(one)
    explained = {function for function, _, _ in reasons}
    equivalent, survivors = kept["equivalent"], kept["survivors"]
    for module in sorted(verdicts.keys() - files.keys()):
        count = Counter[str]()
        for mutant, code in verdicts[module].items():
            function = function_of(mutant)
            count["mutants"] += 1
            if code is NOT_RUN:
                count["not run"] += 1
            elif code in KILLED:
                count["killed"] += 1
            if code in KILLED or module not in run:
                continue
            if code is NOT_RUN and function not in explained:
                continue
            found = change(folder, mutant)
            why = reasons.get((function, found["before"], found["after"]))
            if code is not NOT_RUN:
                count["survived" if why is None else "equivalent"] += 1
            if why is not None:
                equivalent.append(found | {"why": why})
            elif code is not NOT_RUN:
                survivors.append(found)
        files[module] = with_score(count)
    parts: dict[str, Counter[str]] = {part: Counter() for part in PARTS}
    for module, counts in files.items():
        count = parts[str(part_of(module))]
        count.update({k: n for k, n in counts.items() if k not in ("commit", "score")})
    return {
        "parts": {part: with_score(count) for part, count in parts.items() if count},
        "files": dict(sorted(files.items())),
        "equivalent": sorted(equivalent, key=lambda one: one["function"]),
        "survivors": sorted(survivors, key=lambda one: one["function"]),
    }


def reached(part: str, found: dict[str, Any]) -> bool:
    """Whether all of a part was run and its score is no less than its goal."""
    return bool(found) and not found.get("not run") and found["score"] >= GOAL[part]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", type=Path, help="the file to bring up to date")
    parser.add_argument("--mutants", type=Path, default=ROOT / "mutants", help="mutmut's folder")
    parser.add_argument("--note", help="what a reader must know of these numbers (default: as was)")
    args = parser.parse_args()
    if not modules_run(args.mutants):
        print(f"{args.mutants}: no mutant was run; python -m mutmut run does it", file=sys.stderr)
        return 2
    old = json.loads(args.results.read_text("utf-8")) if args.results.exists() else {}
    new = {
        "note": old.get("note", "") if args.note is None else args.note,
        "command": "python -m mutmut run",
        "commit": commit(),
        "versions": {name: version(name) for name in ("mutmut", "torch", "transformers")},
        "machine": machine(),
    } | summary(args.mutants, old)
    args.results.write_text(json.dumps(new, indent=1, ensure_ascii=False) + "\n", "utf-8")
    for part in PARTS:
        print(part, new["parts"].get(part, "has no mutants"))
    return int(not all(reached(part, new["parts"].get(part, {})) for part in PARTS))


if __name__ == "__main__":
    sys.exit(main())
