"""Train and compare sft, ppo, dpo and orpo from one base model, and write a report.

    python -m benchmarks.compare
    python -m benchmarks.compare --model ./smollm2 --data ./piqa --seeds 0 --set dpo="--beta 0.2"

The report is a Markdown and a self-contained HTML page in --output_dir, beside every run and every
sampled answer. Stop it at any time and start it again with the same flags: what is finished is
kept. Killed stages begin anew; the same command gives the same weights, so the same table, save for
seconds and memory.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from pathlib import Path

from benchmarks.study.plan import STAGES, Study, cores, parse_settings
from data.errors import INTERRUPTED, IO_ERROR, USAGE, InputError
from models.locate import locate


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default="pocket", help="base model: a directory, a hub id, or pocket")
    add("--data", default="pocket", help="preference pairs, as for train.py")
    add("--eval_data", help="held-out pairs (default: those beside --data)")
    add("--seeds", nargs="+", default=["0", "1", "2"], help="default: 0 1 2")
    add("--pairs", type=int, help="pairs each stage sees, responses that ppo samples (default:"
        " 3200 on pocket, else --epochs passes)")  # fmt: skip
    add("--epochs", type=float, default=1.0, help="passes that make the default of --pairs")
    add("--stages", nargs="+", default=[s.name for s in STAGES], help="only these; default: all")
    add("--set", action="append", default=[], metavar='STAGE="--flag value"',
        help="train.py flags of one stage, or of `all`; may be given often")  # fmt: skip
    add("--evals", type=int, default=10, help="held-out evaluations while training (default: 10)")
    add("--samples", type=int, default=256, help="answers sampled of each model, or more, as many"
        " to every held-out prompt (default: 256)")  # fmt: skip
    add("--max_new_tokens", type=int, default=64, help="longest answer (default: 64)")
    add("--note", default="", help="what must stand below every table and figure")
    add("--jobs", type=int, help="stages side by side (default: 2 on pocket, else 1)")
    add("--output_dir", type=Path, default=Path("report"), help="default: report")
    add("--dry_run", action="store_true", help="print the stages and their commands; stop")
    argv = sys.argv[1:] if argv is None else argv
    command = shlex.join(["python", "-m", "benchmarks.compare", *argv])
    return parser.parse_args(argv, argparse.Namespace(command=command))


def make_study(args: argparse.Namespace) -> Study:
    """Raises InputError for what cannot be run, before anything is."""
    seeds = [seed for part in args.seeds for seed in part.replace(",", " ").split()]
    if not seeds or not all(seed.isdecimal() for seed in seeds):
        raise InputError(f"--seeds {' '.join(args.seeds)}: give whole numbers", USAGE)
    wanted = [name for part in args.stages for name in part.replace(",", " ").split()]
    unknown = [name for name in wanted if name not in [stage.name for stage in STAGES]]
    if unknown:
        known = ", ".join(stage.name for stage in STAGES)
        raise InputError(f"--stages {unknown[0]}: choose from {known}", USAGE)
    for name in ("pairs", "epochs", "evals", "samples", "max_new_tokens", "jobs"):
        if getattr(args, name) is not None and getattr(args, name) <= 0:
            raise InputError(f"--{name} {getattr(args, name)} must be above 0", USAGE)
    study = Study(
        model=args.model,
        data=args.data,
        eval_data=args.eval_data,
        seeds=tuple(dict.fromkeys(map(int, seeds))),
        pairs=args.pairs,
        epochs=args.epochs,
        evals=args.evals,
        samples=args.samples,
        max_new_tokens=args.max_new_tokens,
        stages=tuple(stage for stage in STAGES if stage.name in wanted),
        extra=parse_settings(args.set),
        note=args.note,
        command=args.command,
        output_dir=args.output_dir,
        jobs=args.jobs or (2 if args.model == "pocket" and cores() > 1 else 1),
    )
    study.check()
    locate(study.model)
    return study


def show_plan(study: Study) -> None:
    print(f"{study.budget:,} pairs a stage; {len(study.seeds) * len(study.stages)} runs")
    for seed in study.seeds:
        for stage in study.stages:
            after = f"  (after {', '.join(stage.needs)})" if stage.needs else ""
            steps = study.flags(stage).get("max_steps") or "by --epochs"
            print(f"\nseed {seed} {stage.name}, {steps} steps{after}")
            print("  " + shlex.join(["python", "train.py", *study.argv(stage, seed)]))


def main() -> int:
    args = parse()
    try:
        study = make_study(args)
        if args.dry_run:
            show_plan(study)
            return 0
        return run(study)
    except InputError as error:
        print(f"compare: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"compare: reading or writing failed: {error}", file=sys.stderr)
        return IO_ERROR
    except KeyboardInterrupt:
        print("compare: interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED


def run(study: Study) -> int:
    """Train, measure, write; 1 if a stage failed."""
    from filelock import FileLock, Timeout

    from benchmarks.study.runner import run_stages
    from data.errors import CANNOT_CREATE

    def tell(line: str) -> None:
        print(line, flush=True)

    study.output_dir.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(study.output_dir / "study.lock").acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"{study.output_dir}: a study is going on here; give another --output_dir",
            CANNOT_CREATE,
        ) from None
    with lock:
        outcomes = run_stages(study, tell)
        # torch is only needed from here on
        from benchmarks.study import collect, measure, pictures, report

        unmeasured = measure.measure_all(study, outcomes, tell)
        results = collect.collect(study, outcomes, unmeasured)
        report.write(study, results, pictures.draw(study, results))
        tell(f"{study.output_dir}: report.html, report.md, results.json")
        return 1 if results["failures"] else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
