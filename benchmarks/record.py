"""Turn finished run directories into one results file: what the README's numbers come from.

    python -m benchmarks.record benchmarks/results/pocket.json runs/seeds/*

Every run is listed with its own command and its held-out numbers; runs of one loss, model and data
are summed up by their mean over seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHOWN = (
    *("loss", "accuracy", "accuracy_norm", "rewards/margins", "logps/chosen", "logps/rejected"),
    *("reward", "success", "kl", "response_length"),  # ppo's
)


def read_run(directory: Path) -> dict[str, Any]:
    """What a results file keeps of a run. Raises SystemExit if it did not finish."""
    config, status, summary = (
        json.loads((directory / f"{name}.json").read_text("utf-8"))
        for name in ("config", "status", "summary")
    )
    if status["state"] != "finished":
        raise SystemExit(f"{directory}: this run is {status['state']}, not finished")
    train = config["train"]
    return {
        "loss": summary["loss"],
        "model": Path(train["model"]).name,
        "data": Path(train["data"]).name,
        "seed": train["seed"],
        "command": without_folders(config["command"]),
        "steps": summary["steps"],
        "rows": summary["rows"],
        "seconds": round(summary["seconds"], 1),
        **{k: summary[k] for k in ("peak_memory_bytes",) if k in summary},
        **{
            when: {k: v for k, v in summary[when].items() if k in SHOWN}
            for when in ("before", "after")
        },
        "versions": summary["versions"],
    }


def without_folders(text: str) -> str:
    """`hide`, and relative folders too: of `./runs/dpo` a table needs `dpo`."""
    return re.sub(r"(?<!\S)[~./]*/\S*/", "", text)


def hide(told: str) -> str:
    """Where files lay on that machine is nobody's business: their last two names are enough.

    A path begins with / or ~, after a space, a quote or an equals sign. In quotes it may hold
    spaces.
    """

    def last_two(path: re.Match[str]) -> str:
        return "/".join(Path(path[0]).parts[-2:])

    return re.sub(r"(?<=')[/~][^'=]*(?=')|(?<![^\s'=])[/~][^\s']*", last_two, told)


def machine() -> dict[str, Any]:
    """What the seconds depend on."""
    names = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "cpu": names[0].split(":", 1)[1].strip() if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text("utf-8").splitlines() if Path(path).exists() else []


def commit() -> str:
    """The checkout's commit, marked where it has changes that are not committed."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def origin(module: str) -> dict[str, Any]:
    """Where a results file is from: the command, the commit, the versions and the machine."""
    from runtime.report import versions  # which imports torch; this module is asked for less

    return {
        "command": hide(" ".join([f"python -m {module}", *sys.argv[1:]])),
        "commit": commit(),
        "versions": versions(),
        "machine": machine(),
    }


def summarise(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the seeds of each (loss, model, data)."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["loss"], run["model"], run["data"]), []).append(run)
    found = []
    for (loss, model, data), members in groups.items():
        mean = {
            when: {
                key: statistics.fmean(run[when][key] for run in members) for key in members[0][when]
            }
            for when in ("before", "after")
        }
        seconds = statistics.median(run["seconds"] for run in members)
        seeds = sorted(run["seed"] for run in members)
        found.append(
            {"loss": loss, "model": model, "data": data, "seeds": seeds, "seconds": seconds, **mean}
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("output", type=Path, help="the results file to write")
    parser.add_argument("runs", type=Path, nargs="+", help="finished run directories")
    parser.add_argument("--note", default="", help="what a reader must know of these numbers")
    args = parser.parse_args()
    runs = [read_run(directory) for directory in args.runs]
    content = {
        "note": args.note,
        "commit": commit(),
        "machine": machine(),
        "summary": summarise(runs),
        "runs": runs,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    for group in content["summary"]:
        cells = [
            f"{key} {group['before'][key]:.4f} -> {group['after'][key]:.4f}"
            for key in group["before"]
        ]
        print(
            group["loss"], group["model"], group["data"], *cells, f"{group['seconds']} s", sep="  "
        )


if __name__ == "__main__":
    main()
