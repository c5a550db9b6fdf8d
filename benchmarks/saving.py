"""What saving costs: of a run's time, and of the start after a save that was interrupted.

    python -m benchmarks.saving benchmarks/results/saving.json --model DIR --data DIR

Runs with and without checkpoints in turns. Between the first step and the last a run with them
saves twice; what it takes longer, by save, is the cost, and its share of a minute that of one save
a minute. The machine does nothing else meanwhile, or the figures are of something else.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.record import origin
from benchmarks.runs import step_ends, train
from runtime.checkpoints.store import Store

STEPS, EVERY = 12, 4  # saved after steps 4, 8 and 12: twice before the last step ends
SAVES = 2


def seconds_of(flags: list[str], out: Path) -> float:
    """From the end of the first step to that of the last."""
    train(flags, out)
    ends = step_ends(out)
    return ends[-1] - ends[0]


def interrupted_start(out: Path) -> tuple[float, float]:
    """Seconds that a half-written checkpoint costs the next start, and that reading one takes."""
    store = Store(out / "checkpoints")
    newest = store.path(store.steps()[0])
    shutil.copytree(newest, newest.with_name("step-000099.partial"))
    began = time.perf_counter()
    store.clean()
    cleaned = time.perf_counter()
    store.read(store.steps()[0])
    return cleaned - began, time.perf_counter() - cleaned


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--pairs", type=int, default=3)
    given = parser.parse_args()
    flags = ["--loss", "sft", "--model", given.model, "--data", given.data]
    flags += ["--batch_size", "8", "--max_steps", str(STEPS)]
    pairs: list[dict[str, float]] = []
    starts: list[tuple[float, float]] = []
    size = 0
    for number in range(given.pairs):
        with tempfile.TemporaryDirectory() as folder:
            taken: dict[str, float] = {}
            order = ["without", "with"] if number % 2 == 0 else ["with", "without"]
            for name in order:
                saving = ["--save_every", str(EVERY)] if name == "with" else []
                taken[name] = seconds_of([*flags, *saving], Path(folder) / name)
            checkpoints = Path(folder) / "with" / "checkpoints"
            size = sum(f.stat().st_size for f in sorted(checkpoints.iterdir())[-1].iterdir())
            starts.append(interrupted_start(Path(folder) / "with"))
        pairs.append(taken)
        print(taken, starts[-1], flush=True)
    cost = statistics.median((pair["with"] - pair["without"]) / SAVES for pair in pairs)
    about: dict[str, Any] = {
        **origin("benchmarks.saving"),
        "steps": STEPS,
        "seconds": pairs,
        "seconds a save, median": cost,
        "share of the time at one save a minute": cost / 60,
        "bytes of a checkpoint": size,
        "seconds that an interrupted save costs the next start": [one for one, _ in starts],
        "seconds to check and read a checkpoint": [one for _, one in starts],
    }
    given.results.write_text(json.dumps(about, indent=2) + "\n", "utf-8")
    print(f"{cost:.2f} s a save, {100 * cost / 60:.1f} % of the time at one a minute")


if __name__ == "__main__":
    main()
