"""Cost curves: time and memory of a step, and of the start, as one thing grows at a time.

    python -m benchmarks.scaling benchmarks/results/scaling.json --model DIR --data DIR
    python -m benchmarks.scaling benchmarks/results/scaling.json --draw

Every point is a process of its own. The file is filled point by point, and what it has is not run
again. The machine does nothing else meanwhile, or the figures are of something else.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

from benchmarks.figures.style import COLORS, look, panels, save, words
from benchmarks.record import ROOT, commit, origin
from benchmarks.runs import TRAIN, durations, step_ends, train, write_rows
from benchmarks.threads import neighbour
from benchmarks.versus.processes import watch
from data.records import load_data
from runtime.files import read_json, write_json

CURVES: dict[str, tuple[int, ...]] = {
    "batch": (1, 2, 4, 8, 16, 32, 64),
    "busy": (1, 4, 16),
    "length": (64, 128, 256, 512, 1024, 2048, 4096),
    "vocabulary": (32_000, 65_536, 131_072, 262_144),
    "ranks": (1, 2),
    "rows": (1_000, 10_000, 100_000, 1_000_000),
}
NOTES = {
    "batch": "rows of a step of DPO",
    "busy": "the same, beside a process that keeps two threads busy",
    "length": "tokens of a row; SFT, 4,096 tokens a step",
    "vocabulary": "of a random model of the same width and two layers; DPO, 16 rows a step",
    "ranks": "processes that share the machine's cores and a step of 16 rows of DPO; memory of one",
    "rows": "of the data: seconds from the command to the end of the first step (DPO, 8 rows, 8"
    " held-out rows), and what the data takes in a process without a model, at the first start,"
    " which makes the tokens, and at the second, which has them",
}
WARM_UP, STEPS = 2, 6  # steps of a run that do not count, and that do
TOKENS = 4096  # of a step, in curve `length`
HELDOUT = 8  # rows, so that their evaluation before the first step is not what is measured
MIB = 2**20
Row = Mapping[str, str]


class Bench:
    """Measures points of the curves, in runs of train.py on the data and the model given."""

    def __init__(self, model: str, data: str, folder: Path) -> None:
        self.model, self.folder = model, folder
        records, heldout, _ = load_data(data, pairs=True, eval_rows=HELDOUT)
        self.pairs, rest = (
            [{c: str(getattr(record, c)) for c in ("prompt", "chosen", "rejected")} for record in x]
            for x in (records, heldout)
        )
        self.heldout = write_rows(folder / "heldout.jsonl", rest[:HELDOUT])

    def batch(self, size: int, *, busy: bool = False) -> dict[str, Any]:
        return self.steps(cycle(self.pairs), busy=busy, batch_size=size)

    def busy(self, size: int) -> dict[str, Any]:
        return self.batch(size, busy=True)

    def length(self, length: int) -> dict[str, Any]:
        return self.steps(
            long_rows(self.pairs, length),
            loss="sft",
            batch_size=TOKENS // length,
            max_length=length,
            max_tokens=TOKENS,
        )

    def vocabulary(self, size: int) -> dict[str, Any]:
        model = random_model(self.model, size, self.folder / f"vocabulary-{size}")
        return self.steps(cycle(self.pairs), model=model, batch_size=16)

    def ranks(self, count: int) -> dict[str, Any]:
        return self.steps(cycle(self.pairs), ranks=count, batch_size=16)

    def steps(
        self, rows: Iterable[Row], *, busy: bool = False, ranks: int = 1, **flags: Any
    ) -> dict[str, Any]:
        """Median seconds of a step and peak memory of a run on the first of these rows."""
        count = flags["batch_size"] * (WARM_UP + STEPS)
        given = {
            "loss": "dpo",
            "model": self.model,
            "data": write_rows(self.folder / "train.jsonl", islice(rows, count)),
            "eval_data": self.heldout,
            "max_steps": WARM_UP + STEPS,
            "save_every": 10**6,
        }
        arguments = [f"--{name}={value}" for name, value in (given | flags).items()]
        with tempfile.TemporaryDirectory(dir=self.folder) as out, neighbour(busy):
            train(arguments, Path(out), ranks=ranks)
            ends = step_ends(Path(out))
            peak = read_json(Path(out) / "summary.json")["peak_memory_bytes"]
        return {"seconds": statistics.median(durations(ends, WARM_UP)), "bytes": peak}

    def rows(self, count: int) -> dict[str, Any]:
        numbered = (
            row | {"prompt": f"{number} {row['prompt']}"}
            for number, row in enumerate(islice(cycle(self.pairs), count), 1)
        )
        data = write_rows(self.folder / "rows.jsonl", numbered)
        found: dict[str, Any] = {"bytes of the file": os.stat(data).st_size}
        with tempfile.TemporaryDirectory(dir=self.folder) as home:
            caches = [Path(home, name) for name in ("run", "alone")]
            for start in ("first", "second"):
                found[start] = {
                    "first step seconds": self.first_step(data, caches[0]),
                    **self.data_cost(data, caches[1]),
                }
            files = caches[0].rglob("*.arrow")
            found["bytes of the tokens"] = sum(file.stat().st_size for file in files)
        return found

    def first_step(self, data: str, cache: Path) -> float:
        """Seconds from the command to the end of the first optimizer step."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            out = Path(folder, "run")
            flags = {"model": self.model, "data": data, "eval_data": self.heldout}
            flags |= {"loss": "dpo", "batch_size": "8", "max_steps": "1", "output_dir": str(out)}
            command = [sys.executable, str(TRAIN), *(f"--{k}={v}" for k, v in flags.items())]
            env = os.environ | {"HF_DATASETS_CACHE": str(cache)}
            lines = out / "metrics.jsonl"
            return watch(command, env, Path(folder), lines, '"grad_norm"')["first_step"]

    def data_cost(self, data: str, cache: Path) -> dict[str, Any]:
        """Of the data alone, in a process that loads no model."""
        command = [sys.executable, "-m", "benchmarks.data_cost", self.model, data, self.heldout]
        env = os.environ | {"HF_DATASETS_CACHE": str(cache)}
        done = subprocess.run(
            command, cwd=ROOT, env=env, check=True, capture_output=True, text=True
        )
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found


def long_rows(pairs: Iterable[Row], length: int) -> Iterator[Row]:
    """Rows to be cut to `length` tokens, of which every word is at least one."""
    rows = cycle(pairs)
    while True:
        prompt, texts, words = next(rows)["prompt"], list[str](), 0
        while words < length:
            row = next(rows)
            texts.append(f" {row['chosen']} {row['prompt']}")
            words += len(texts[-1].split())
        yield {"prompt": prompt, "completion": "".join(texts)}


def random_model(like: str, vocabulary: int, path: Path) -> str:
    """Two layers of a model's width, and pocket's tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data" / "pocket" / "base")
    config = AutoConfig.from_pretrained(like)
    config.vocab_size, config.num_hidden_layers = vocabulary, 2
    config.bos_token_id = config.eos_token_id = tokenizer.eos_token_id
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def draw(curves: Mapping[str, list[dict[str, Any]]], path: Path) -> None:
    """Two rows of panels: time above, memory below; a column a group of curves."""
    shown = [[name for name in group if curves.get(name)] for group in GROUPS]
    columns = [names for names in shown if names]
    if not columns:
        return
    with look():
        figure, axes = panels(2, len(columns))
        for column, names in enumerate(columns):
            above, below = axes[column], axes[len(columns) + column]
            for number, (label, points) in enumerate(
                chain.from_iterable(series(name, curves[name]) for name in names)
            ):
                x, seconds, size = zip(*points, strict=True)
                memory = [value / MIB for value in size]
                for axis, values in ((above, seconds), (below, memory)):
                    axis.plot(x, values, color=COLORS[number], marker="o", label=label)
            for axis, y in ((above, "seconds"), (below, "MiB")):
                axis.set_xscale("log", base=10 if names == ["rows"] else 2)
                axis.set_yscale("log")
                several = names == ["rows"] or len(names) > 1
                words(axis, names[0], TITLES[names[0]], y, "best" if several else None)
        save(figure, path)


GROUPS = (("batch", "busy"), ("length",), ("vocabulary",), ("ranks",), ("rows",))
TITLES = {
    "batch": "rows a step",
    "length": "tokens a row",
    "vocabulary": "tokens known",
    "ranks": "processes",
    "rows": "rows of the data",
}


def series(
    name: str, points: list[dict[str, Any]]
) -> Iterator[tuple[str, list[tuple[int, float, float]]]]:
    """(label, (x, seconds, bytes) of every point) of the lines that a curve is drawn as."""
    if name != "rows":
        label = {"batch": "quiet", "busy": "beside a busy process"}.get(name, name)
        yield label, [(point["x"], point["seconds"], point["bytes"]) for point in points]
        return
    for start in ("first", "second"):
        yield (
            f"{start} start",
            [(p["x"], p[start]["first step seconds"], p[start]["data bytes"]) for p in points],
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("results", type=Path, help="the results file to fill, or to draw")
    parser.add_argument("--model", help="a directory or hub id")
    parser.add_argument("--data", help="pairs of strings, as train.py takes them")
    parser.add_argument("--curves", default=",".join(CURVES), help="default: %(default)s")
    parser.add_argument("--draw", action="store_true", help="draw the file, run nothing")
    given = parser.parse_args()
    results: dict[str, Any] = {"notes": NOTES, "curves": {}} | read_json(given.results)
    if given.draw:
        draw(results["curves"], given.results.with_suffix(".png"))
        return
    if not (given.model and given.data):
        parser.error("give --model and --data")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(given.model, given.data, Path(folder))
        for name in given.curves.split(","):
            points: list[dict[str, Any]] = results["curves"].setdefault(name, [])
            for x in CURVES[name]:
                if all(point["x"] != x for point in points):
                    points.append({"x": x, "commit": commit(), **getattr(bench, name)(x)})
                    points.sort(key=lambda point: int(point["x"]))
                    print(name, x, flush=True)
                    write_json(given.results, results | origin("benchmarks.scaling"))


if __name__ == "__main__":
    main()
