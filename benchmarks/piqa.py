"""lm-eval's own PIQA task on any number of models, compared with the first on the same rows.

    python -m benchmarks.piqa --model HuggingFaceTB/SmolLM2-135M runs/sft runs/dpo
    python -m benchmarks.piqa --model pocket runs/dpo --data pocket --output report/piqa.json
    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 -m benchmarks.piqa --model pocket ...

Exit codes are train.py's (CONTRIBUTING.md). Nothing heavy is imported before the flags are read.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from benchmarks.paired import mcnemar, mean_and_stderr, one_sided
from benchmarks.record import commit, machine, without_folders
from data.errors import INTERRUPTED, IO_ERROR, NOT_FINITE, USAGE, InputError
from runtime.files import check_writable, write_whole

if TYPE_CHECKING:
    from accelerate import Accelerator

    from runtime.sources.lm_harness import RowScore

METRICS = ("acc", "acc_norm")


class Parser(argparse.ArgumentParser):
    """One line on stderr says what is wrong, as train.py does it."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help", USAGE)


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m benchmarks.piqa",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model",
        nargs="+",
        action="extend",
        required=True,
        metavar="MODEL",
        help="model directories, hub ids, run directories (runs/dpo), or adapter directories;"
        " pocket is the built-in one. The others are compared with the first",
    )
    parser.add_argument(
        "--data",
        default="piqa",
        help="piqa (default: the hub's baber/piqa, as lm-eval takes it), PIQA's directory, a file"
        " with goal, sol1, sol2, label, or pocket; the validation part where there is one",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the rows as JSON too")
    parser.add_argument(
        "--batch_size", type=int, default=16, help="solutions in one forward (default: 16)"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float64"), default="float32", help="of weights"
    )
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        parser.error(f"--batch_size {args.batch_size} must be above 0")
    return args


def run(args: argparse.Namespace, command: str) -> None:
    """Evaluate, print the table, and write the results file."""
    from accelerate import Accelerator

    from benchmarks.loading import resolve
    from data.piqa import piqa_rows
    from data.records import load_heldout
    from runtime.launch import check_launch

    accelerator = Accelerator(mixed_precision="no")
    check_launch(accelerator)
    if args.output:  # before hours of work
        if args.output.is_dir():
            raise InputError(f"--output {args.output}: a directory, and a file is needed", USAGE)
        check_writable(args.output)
    names = short_names(args.model)
    places = [resolve(name) for name in args.model]
    records, source = load_heldout(args.data)
    rows = piqa_rows(records)
    accelerator.print(f"data: {len(rows):,} rows of {source}")
    scores = {}
    for name, where in zip(names, places, strict=True):
        scores[name] = evaluate(where, rows, args, accelerator)
        accelerator.print(f"{name}: done")
    if accelerator.is_main_process:
        found = results(scores, rows, without_folders(source), without_folders(command))
        print(table(found))
        if args.output:
            write(args.output, found)
    accelerator.end_training()


def evaluate(
    where: str,
    rows: list[dict[str, object]],
    args: argparse.Namespace,
    accelerator: Accelerator,
) -> list[RowScore]:
    """Load one model, and let it go again."""
    from benchmarks.loading import load
    from runtime.sources.lm_harness import piqa_scores

    model, tokenizer = load(where, dtype=args.dtype)
    found = piqa_scores(
        model.to(accelerator.device),
        tokenizer,
        rows,
        batch_size=args.batch_size,
        accelerator=accelerator,
        progress=sys.stderr.isatty(),
    )
    for number, row in enumerate(found, 1):
        if not (math.isfinite(row.logp1) and math.isfinite(row.logp2)):
            logps = f"{row.logp1} and {row.logp2}"
            raise InputError(
                f"--model {where}: the log-probabilities of row {number} are {logps};"
                " are its weights damaged?",
                NOT_FINITE,
            )
    return found


def short_names(models: list[str]) -> list[str]:
    """Names for the table: as given, without the folders that only this machine has."""
    if twice := next((name for name in models if models.count(name) > 1), None):
        raise InputError(f"--model {twice} is given twice", USAGE)
    names = [without_folders(name.rstrip("/").removesuffix("/final")) for name in models]
    return names if len(set(names)) == len(names) else models


def results(
    scores: dict[str, list[RowScore]], rows: list[dict[str, object]], source: str, command: str
) -> dict[str, Any]:
    """The content of the results file: every row of every model, and the paired comparisons."""
    from importlib.metadata import version

    from runtime.report import versions
    from runtime.sources.lm_harness import piqa_task

    text = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
    models, right = [], {}
    for name, found in scores.items():
        entry: dict[str, Any] = {"model": name}
        for metric in METRICS:
            right[name, metric] = [int(getattr(row, metric)) for row in found]
            entry[metric], entry[f"{metric}_stderr"] = mean_and_stderr(right[name, metric])
        models.append(entry | {"rows": [list(row) for row in found]})
    first, *others = scores
    paired = []
    for other, metric in product(others, METRICS):
        a_only, b_only = one_sided(right[first, metric], right[other, metric])
        counts = {"a_only": a_only, "b_only": b_only, "p": mcnemar(a_only, b_only)}
        paired.append({"a": first, "b": other, "metric": metric, **counts})
    return {
        "task": "piqa",
        "task_version": piqa_task()["metadata"]["version"],
        "lm_eval": version("lm_eval"),
        "versions": versions(),
        "commit": commit(),
        "machine": machine(),
        "command": command,
        "data": {
            "source": source,
            "rows": len(rows),
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
        },
        "models": models,
        "paired": paired,
    }


def table(found: dict[str, Any]) -> str:
    """Accuracies with standard errors, and the exact McNemar p of each model against the first."""
    width = max(len("model"), *(len(entry["model"]) for entry in found["models"]))
    lines = [f"{'model':{width}}  {'acc':17}acc_norm"]
    for entry in found["models"]:
        cells = [f"{entry[m]:.4f}{_plus_minus(entry[f'{m}_stderr']):11}" for m in METRICS]
        lines.append(f"{entry['model']:{width}}  {''.join(cells)}".rstrip())
    for pair in found["paired"]:
        lines.append(
            f"{pair['metric']}: {pair['b']} alone is right on {pair['b_only']} rows, {pair['a']}"
            f" alone on {pair['a_only']}; McNemar p = {pair['p']:.3g}"
        )
    return "\n".join(lines)


def _plus_minus(stderr: float | None) -> str:
    return "" if stderr is None else f" ± {stderr:.4f}"


def write(path: Path, found: dict[str, Any]) -> None:
    """The numbers of a row on one line."""
    text = re.sub(
        r"\[[-+.\de,\s]+\]", lambda m: " ".join(m[0].split()), json.dumps(found, indent=1)
    )
    write_whole(path, text + "\n")


def main(argv: Sequence[str]) -> int:
    """From the command line to the exit code."""
    command = shlex.join(["python", "-m", "benchmarks.piqa", *argv])
    try:
        run(parse_args(argv), command)
    except InputError as error:
        return give_up(str(error), error.exit_code)
    except KeyboardInterrupt:
        return give_up("interrupted", INTERRUPTED)
    except OSError as error:
        return give_up(f"reading or writing failed: {error}", IO_ERROR)
    return 0


def give_up(reason: str, exit_code: int) -> int:
    """Say why, in one line, once."""
    if os.environ.get("RANK", "0") == "0":
        print(f"benchmarks.piqa: {reason}", file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
