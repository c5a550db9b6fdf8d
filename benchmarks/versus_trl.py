"""Our time and memory of a step beside TRL's: same machine, model, pairs, order and settings.

    python -m venv build/trl-1.16 && build/trl-1.16/bin/pip install trl==1.16.0
    python -m venv build/trl-1.12 && build/trl-1.12/bin/pip install trl==1.12.0 pandas   # has PPO
    python -m benchmarks.versus_trl benchmarks/results/versus_trl.json --model DIR --data DIR
    python -m benchmarks.versus_trl benchmarks/results/versus_trl.json --table --draw

Every run is a process of its own, ours and TRL's in turns (A B B A). Before a time counts, the
losses of the first steps must be the same, or the cell is void. The file is filled run by run: what
it has is not run again, so that the command can be stopped and given again. The machine does
nothing else meanwhile, or the figures are of something else. Cells: benchmarks/versus/cells.py.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.record import commit, hide, origin
from benchmarks.runs import durations
from benchmarks.versus.cells import ALL, PROBE_STEPS, Cell, cell_named
from benchmarks.versus.inputs import make_scorer, read_pairs, write_files
from benchmarks.versus.page import draw, table
from benchmarks.versus.processes import Failed, Files, run_ours, run_trl
from benchmarks.versus.summary import summarize
from runtime.files import read_json, write_json

NOTE = (
    "One process a run, in turns. OMP_WAIT_POLICY is PASSIVE on both sides, other variables of"
    " OpenMP and MKL are unset. AdamW, constant learning rate, gradient clipped to norm 1 (ppo: not"
    " clipped), float32 weights; TRL keeps its own logging every 10 steps, train.py writes every"
    " step. train.py also evaluates 8 held-out rows (ppo: 256 responses) before and after, which is"
    " in `finished` and in the peak. In cell `launch` the run has one step, so the pass of the"
    " reference is over that step's rows; the whole of it is in `epoch`. In `best` both sides take"
    " batches of like length."
)


class Bench:
    """The results file, and the runs that it lacks."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self.given, self.folder = given, folder
        self.results: dict[str, Any] = {"cells": {}} | read_json(given.results)
        self.pairs, self.heldout = read_pairs(given.model, given.data)
        self.scorer = ""

    def cell(self, name: str) -> None:
        """Make the runs of a cell that are not in the file; a run that fails ends the cell."""
        cell, given = cell_named(name), self.given
        settings = {
            "steps": given.steps,
            "seed": given.seed,
            "model": Path(given.model).name,
            "data": Path(given.data).name,
            "threads": given.threads,
        }
        record = self.results["cells"].setdefault(name, {"settings": settings, "runs": []})
        if record["settings"] != settings:
            raise SystemExit(f"{given.results}: {name} has other settings: {record['settings']}")
        record.pop("failed", None)
        todo = [turn for turn in _turns(given.pairs) if not _has(record["runs"], *turn)]
        if not todo:
            return
        if not self.scorer and cell.loss in ("reward", "ppo"):
            self.scorer = make_scorer(given.model, self.folder / "scorer", given.seed)
        files, made, flops = write_files(
            cell,
            self.folder / name.replace("/", "-"),
            self.pairs,
            self.heldout,
            model=given.model,
            scorer=self.scorer,
            steps=given.steps,
            seed=given.seed,
        )
        try:
            precision = self.precision(cell, files, record)
            for pair, side in todo:
                if side == "ours":
                    found = self.ours(cell, files, made) | {"floor_flops": flops}
                else:
                    found = self.trl(cell, files, made, precision)
                    record["versions of TRL's side"] = found.pop("versions")
                record["runs"].append({"pair": pair, "side": side, **found})
                exact = record.get("TRL's precisions", {}).get("float32", {}).get("losses", ())
                record["summary"] = summarize(cell, record["runs"], exact)
                record["commit"] = commit()
                print(name, pair, side, record["summary"].get("TRL / ours"), flush=True)
                self.write()
        except Failed as failure:
            record["failed"] = hide(str(failure))
            print(f"{name}: failed:\n{failure}", file=sys.stderr, flush=True)
            self.write()

    def ours(self, cell: Cell, files: Files, made: int) -> dict[str, Any]:
        given = self.given
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            return run_ours(
                cell, files, Path(folder), made=made, seed=given.seed, threads=given.threads
            )

    def trl(self, cell: Cell, files: Files, made: int, precision: str | None) -> dict[str, Any]:
        given = self.given
        python = given.trl12_python if cell.kind == "ppo" else given.trl_python
        arguments = cell.trl_arguments(made, given.seed, precision)
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            return run_trl(
                cell, files, Path(folder), python, arguments=arguments, threads=given.threads
            )

    def precision(self, cell: Cell, files: Files, record: dict[str, Any]) -> str | None:
        """TRL's faster one, by a short run of each; None: that of the cell."""
        if not cell.chooses_precision:
            return None
        probes: dict[str, Any] = record.setdefault("TRL's precisions", {})
        for precision in ("float32", "bf16"):
            if precision not in probes:
                run = self.trl(cell, files, PROBE_STEPS, precision)
                seconds = sum(durations(run["ends"], 2)) / (PROBE_STEPS - 2)
                probes[precision] = {"seconds a step": seconds, "losses": run["losses"]}
                self.write()
        return min(probes, key=lambda name: float(probes[name]["seconds a step"]))

    def write(self) -> None:
        self.results |= {"note": NOTE, **origin("benchmarks.versus_trl")}
        write_json(self.given.results, self.results)


def _turns(pairs: int) -> list[tuple[int, str]]:
    """A B B A A B ...: neither side is always the first."""
    orders = (("ours", "trl"), ("trl", "ours"))
    return [(pair, side) for pair in range(pairs) for side in orders[pair % 2]]


def _has(runs: list[dict[str, Any]], pair: int, side: str) -> bool:
    return any((run["pair"], run["side"]) == (pair, side) for run in runs)


def absolute(path: str) -> str:
    """A path that is there, from any folder; links of an environment's Python stay."""
    return str(Path(path).absolute()) if Path(path).exists() else path


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add: Callable[..., Any] = parser.add_argument
    add("results", type=Path, help="the results file to fill, or to show")
    add("--model", type=absolute, help="a directory or hub id: Llama-like")
    add("--data", help="pairs of strings, as train.py takes them")
    add("--trl_python", type=absolute, default="build/trl-1.16/bin/python", help="with trl 1.16.0")
    add(
        "--trl12_python", type=absolute, default="build/trl-1.12/bin/python", help="for ppo, 1.12.0"
    )
    add("--cells", default=",".join(ALL), help="comma-separated; default: %(default)s")
    add("--pairs", type=int, default=5, help="pairs of runs a cell")
    add("--steps", type=int, default=20, help="steps of a run that count")
    add("--threads", type=int, help="OMP_NUM_THREADS (default: not set)")
    add("--seed", type=int, default=0)
    add("--table", action="store_true", help="print the results as Markdown, run nothing")
    add("--draw", action="store_true", help="draw them beside the file, run nothing")
    given = parser.parse_args()
    if not (given.table or given.draw) and not (given.model and given.data):
        parser.error("give --model and --data")
    return given


def main() -> None:
    given = parse()
    if given.table:
        print(table(read_json(given.results)))
    if given.draw:
        draw(read_json(given.results), given.results.with_suffix(".png"))
    if given.table or given.draw:
        return
    names = given.cells.split(",")
    for name in names:
        cell_named(name)  # a wrong one is said before hours of runs
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the run that goes on too
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(given, Path(folder))
        for name in names:
            bench.cell(name)


if __name__ == "__main__":
    main()
