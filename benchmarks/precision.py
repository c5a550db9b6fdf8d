"""Whether bfloat16 changes what a run learns: the same runs with and without it, by seed.

    python -m benchmarks.precision benchmarks/results/precision.json --model DIR --data DIR

Every run is listed as it ends, and a file that has some of them is gone on with. The held-out
metrics are of the run's own precision; before training they show what rounding alone does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.record import origin
from benchmarks.runs import durations, step_ends, train
from runtime.files import read_json, write_json

RATES = {"sft": 1e-5, "dpo": 5e-6}
PRECISIONS = ("no", "bf16")
SHOWN = ("loss", "accuracy", "rewards/margins", "rewards/accuracies")


def one_run(loss: str, seed: int, precision: str, flags: list[str]) -> dict[str, Any]:
    own = ["--loss", loss, "--seed", str(seed), "--mixed_precision", precision]
    own += ["--learning_rate", str(RATES[loss])]
    with tempfile.TemporaryDirectory() as folder:
        train([*own, *flags], Path(folder))
        summary, ends = read_json(Path(folder, "summary.json")), step_ends(Path(folder))
    return {
        "loss": loss,
        "seed": seed,
        "precision": precision,
        "steps": summary["steps"],
        "median step, seconds": statistics.median(durations(ends)),
        **{
            when: {name: summary[when][name] for name in SHOWN if name in summary[when]}
            for when in ("before", "after")
        },
    }


def comparison(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of every loss: what each precision gained on the held-out rows, seed by seed."""
    found: dict[str, Any] = {}
    for loss in RATES:
        by = {(r["seed"], r["precision"]): r for r in runs if r["loss"] == loss}
        seeds = sorted({seed for seed, _ in by if all((seed, p) in by for p in PRECISIONS)})
        if not seeds:
            continue
        pairs = [[by[seed, p] for p in PRECISIONS] for seed in seeds]
        found[loss] = {
            "held-out loss after, float32 and bf16": [
                [run["after"]["loss"] for run in pair] for pair in pairs
            ],
            "bf16 minus float32 after, mean": statistics.mean(
                bf16["after"]["loss"] - full["after"]["loss"] for full, bf16 in pairs
            ),
            "bf16 minus float32 before, mean": statistics.mean(
                bf16["before"]["loss"] - full["before"]["loss"] for full, bf16 in pairs
            ),
            "float32's loss after: spread over seeds": max(p[0]["after"]["loss"] for p in pairs)
            - min(p[0]["after"]["loss"] for p in pairs),
            "float32's gain, mean": statistics.mean(
                full["before"]["loss"] - full["after"]["loss"] for full, _ in pairs
            ),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    flags = ["--model", given.model, "--data", given.data, "--max_steps", str(given.steps)]
    runs: list[dict[str, Any]] = read_json(given.results).get("runs", [])
    made = {(run["seed"], run["loss"], run["precision"]) for run in runs}
    for seed, loss, precision in product(range(given.seeds), RATES, PRECISIONS):
        if (seed, loss, precision) in made:
            continue
        runs.append(one_run(loss, seed, precision, flags))
        print(json.dumps(runs[-1]), flush=True)
        about = origin("benchmarks.precision") | {"comparison": comparison(runs), "runs": runs}
        write_json(given.results, about)


if __name__ == "__main__":
    main()
