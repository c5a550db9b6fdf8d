"""Run the stages that are not finished yet, some side by side; what is finished is left alone.

A run directory counts as finished when its status.json says so and its stage.json, written before
the run, holds what is asked for now: the flags, and the sha256 of everything it starts from. So a
changed flag runs that stage again and all that is built on it, and nothing else.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from benchmarks.record import commit
from benchmarks.study.plan import Stage, Study, cores
from data.folders import scan
from data.pocket import BASE_DIR
from data.selection import split_name
from data.shards import shard
from runtime.files import read_json, write_json

FILES = ("ref_model", "prompts")  # flags that may name files, beside the study's own
TICK = 0.05  # seconds between looks at the running stages
TELL_EVERY = 30.0  # seconds between two lines of progress while nothing ends
PATIENCE = 60.0  # seconds for a stopped run to let go of its directory


@dataclass(frozen=True)
class Outcome:
    """How a stage of a seed ended."""

    state: Literal["finished", "failed", "skipped"]
    reason: str = ""


@dataclass
class Job:
    """A stage that is running."""

    seed: int
    stage: Stage
    process: subprocess.Popen[bytes]
    log: Path
    began: float


Outcomes = dict[tuple[int, str], Outcome]


def fingerprint(name: str | Path) -> str:
    """sha256 over a model's weights or a data set's files; what is no path is its own name.

    Data may lie in folders below (data/folders.py), labels beside the file that is named.
    """
    path = BASE_DIR if name == "pocket" else Path(name).expanduser()
    if not path.exists():
        return str(name)
    if path.is_file():
        labels = path.with_name(f"{path.stem}-labels.lst")
        folder, files = path.parent, [path, *([labels] if labels.exists() else [])]
    else:
        kinds = {".safetensors", ".bin", ".lst", ".jsonl", ".json", ".csv", ".parquet"}
        top = [file for file in path.iterdir() if file.suffix in kinds and file.is_file()]
        folder, files = path, sorted({*top, *_below(path)})
    # what os.stat says is the key, so that hundreds of megabytes are read once and not every time
    return _digest(folder, tuple((f, f.stat().st_size, f.stat().st_mtime_ns) for f in files))


def _below(path: Path) -> list[Path]:
    """The data files in and below a directory that have a split in their names."""
    names = {file: shard(file.relative_to(path)).base for file in scan(path)}
    return [
        file
        for file, base in names.items()
        if any(map(split_name, (base, *file.relative_to(path).parent.parts)))
    ]


@functools.cache
def _digest(folder: Path, files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for file, size, _ in files:
        digest.update(f"{file.relative_to(folder)} {size}\n".encode())
        with open(file, "rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def identity(study: Study, stage: Stage, seed: int) -> dict[str, Any]:
    """All that a stage's result depends on but the code; the stages it needs must be finished."""
    starts = {
        "model": study.directory(seed, stage.start) / "final" if stage.start else study.model,
        "reward": study.directory(seed, stage.reward) / "final" if stage.reward else None,
        "data": None if study.data == "pocket" else study.data,
        "eval_data": study.eval_data,
    }
    flags = study.flags(stage)
    starts |= {name: flags[name] for name in FILES if name in flags}
    return {
        "loss": stage.loss,
        "seed": seed,
        "flags": flags,
        "starts": {name: fingerprint(path) for name, path in starts.items() if path is not None},
    }


def is_finished(study: Study, stage: Stage, seed: int) -> bool:
    run = study.directory(seed, stage.name)
    return (
        read_json(run / "status.json").get("state") == "finished"
        and (run / "final").is_dir()
        and read_json(run / "stage.json").get("is") == identity(study, stage, seed)
    )


def run_stages(study: Study, tell: Callable[[str], None]) -> Outcomes:
    """Every stage of every seed, `study.jobs` at a time, each after those it needs.

    A stage that fails is left as it is and what needs it is skipped. On KeyboardInterrupt the
    running ones are stopped before it goes on; they are run again the next time.
    """
    waiting = [(seed, stage) for seed in study.seeds for stage in study.stages]
    outcomes: Outcomes = {}
    jobs: list[Job] = []
    told = time.monotonic()
    try:
        while waiting or jobs:
            for seed, stage in list(waiting):
                before = [outcomes.get((seed, name)) for name in stage.needs]
                lost = [
                    n for n in stage.needs if _state(outcomes, seed, n) in ("failed", "skipped")
                ]
                if lost:
                    reason = f"needs {' and '.join(lost)}"
                    outcomes[seed, stage.name] = Outcome("skipped", reason)
                    tell(f"seed {seed} {stage.name}: skipped, {reason}")
                elif None in before:
                    continue
                elif is_finished(study, stage, seed):
                    outcomes[seed, stage.name] = Outcome("finished")
                    tell(f"seed {seed} {stage.name}: finished before, kept")
                elif len(jobs) < study.jobs:
                    jobs.append(start(study, stage, seed, tell))
                else:
                    continue
                waiting.remove((seed, stage))
            for job in [job for job in jobs if job.process.poll() is not None]:
                jobs.remove(job)
                outcomes[job.seed, job.stage.name] = outcome = ended(study, job)
                took = f"{time.monotonic() - job.began:.0f} s"
                told = time.monotonic()
                what = f"{outcome.state} after {took}" + (
                    f": {outcome.reason}" * bool(outcome.reason)
                )
                done = f"[{len(outcomes)}/{len(study.seeds) * len(study.stages)}]"
                tell(f"{done} seed {job.seed} {job.stage.name}: {what}{left(study, waiting, jobs)}")
            if jobs and time.monotonic() - told > TELL_EVERY:
                told = time.monotonic()
                now = ", ".join(f"seed {j.seed} {j.stage.name} {_where(study, j)}" for j in jobs)
                tell(f"running: {now}{left(study, waiting, jobs)}")
            if jobs:
                time.sleep(TICK)
    finally:
        stop(jobs)
    return outcomes


def _state(outcomes: Outcomes, seed: int, name: str) -> str:
    found = outcomes.get((seed, name))
    return found.state if found else "waiting"


def start(study: Study, stage: Stage, seed: int, tell: Callable[[str], None]) -> Job:
    """Clear away what an earlier attempt left and start the stage."""
    run, argv = study.directory(seed, stage.name), study.argv(stage, seed)
    again = ""
    if run.exists():
        state = read_json(run / "status.json").get("state", "unfinished")
        again = " again, with other flags or another start" if state == "finished" else " again"
        with FileLock(run / "run.lock").acquire(timeout=PATIENCE):
            pass  # a run whose study was killed has let go
        shutil.rmtree(run)
    run.mkdir(parents=True)
    about = {"is": identity(study, stage, seed), "commit": commit()}
    write_json(run / "stage.json", about)
    log = run.parent / f"{stage.name}.log"
    threads = max(1, cores() // study.jobs)
    # With a launcher's variable in its environment a run ends when we do, however we end; and one
    # thread pool for all cores a run would make those side by side slower than one by one.
    env = {"ACCELERATE_MIXED_PRECISION": "no", "OMP_NUM_THREADS": str(threads)} | os.environ
    tell(f"seed {seed} {stage.name}: starts{again}")
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [*study.trainer, *argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,  # Ctrl-C reaches this process, which then stops them in order
        )
    return Job(seed, stage, process, log, time.monotonic())


def ended(study: Study, job: Job) -> Outcome:
    """What became of a job: its exit code and the last line it wrote."""
    code = job.process.returncode
    state = read_json(study.directory(job.seed, job.stage.name) / "status.json").get("state")
    if code == 0 and state == "finished":
        return Outcome("finished")
    lines = [line for line in job.log.read_text("utf-8", "replace").splitlines() if line.strip()]
    return Outcome("failed", f"exit code {code}, {lines[-1] if lines else 'no output'}")


def stop(jobs: list[Job]) -> None:
    """End what runs, as Ctrl-C would, and wait for it."""
    for job in jobs:
        job.process.terminate()
    for job in jobs:
        try:
            job.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            job.process.kill()
            job.process.wait()


# ---------------------------------------------------------------- time left


def progress(study: Study, job: Job) -> tuple[int, int, float | None]:
    """(steps done, steps planned, seconds that are left if known) of a running stage."""
    run = study.directory(job.seed, job.stage.name)
    planned = int(read_json(run / "config.json").get("steps", 0))
    lines = (run / "metrics.jsonl").read_bytes().split(b"\n")[:-1] if planned else []
    steps = [row for row in map(json.loads, lines) if "seconds" in row]
    if len(steps) < 2:
        return len(steps), planned, None
    first, last = steps[0], steps[-1]
    pace = (last["seconds"] - first["seconds"]) / (last["step"] - first["step"])
    return last["step"], planned, pace * (planned - last["step"])


def _where(study: Study, job: Job) -> str:
    done, planned, _ = progress(study, job)
    return f"step {done}/{planned}" if planned else "starting"


def left(study: Study, waiting: list[tuple[int, Stage]], jobs: list[Job]) -> str:
    """`; about 9 min left`, from what stages of the same loss took, or any where none has ended."""
    took: dict[str, list[float]] = {}
    for seed in study.seeds:
        for stage in study.stages:
            summary = read_json(study.directory(seed, stage.name) / "summary.json")
            if summary:
                took.setdefault(stage.loss, []).append(summary["seconds"])
    rest = [progress(study, job)[2] for job in jobs]
    for job, known in zip(jobs, rest, strict=True):
        if known is not None:
            took.setdefault(job.stage.loss, []).append(time.monotonic() - job.began + known)
    if not took or not (waiting or jobs):
        return ""
    every = [seconds for group in took.values() for seconds in group]

    def expected(stage: Stage) -> float:
        return statistics.fmean(took.get(stage.loss, every))

    seconds = sum(expected(stage) for _, stage in waiting)
    for job, known in zip(jobs, rest, strict=True):
        seconds += expected(job.stage) if known is None else known
    minutes = seconds / min(study.jobs, len(waiting) + len(jobs)) / 60
    return f"; about {minutes:.0f} min left" if minutes > 1 else "; less than a minute left"
