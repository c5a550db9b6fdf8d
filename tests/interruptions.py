"""Kill a run at every point of every step, start it again, and compare it with the unbroken one.

    python tests/interruptions.py benchmarks/results/interruptions.json

A run is forked from a process that has made its imports (tests/runs.py), told at which call of
which function to die, and killed there with SIGKILL by itself. Nothing in the product knows of it.
"""

import json
import os
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from runs import pocket_rows, run, timeless, weights, write_rows  # noqa: E402

from runtime.files import read_json  # noqa: E402

STEPS = 12
LOSSES = ("sft", "reward", "dpo", "orpo", "ppo")
FLAGS = {
    "all": ("--max_steps", STEPS, "--eval_every", 3, "--save_every", 2, "--keep", 2),
    "rows": ("--batch_size", 4, "--learning_rate", 1e-3, "--max_tokens", 64),
    # three rollouts, two passes over each in two minibatches
    "ppo": ("--batch_size", 4, "--rollout_size", 8, "--ppo_epochs", 2, "--max_new_tokens", 6),
}

# Where a process dies: the function, by module and name; before its n-th call, or after it.
POINTS = {
    "data": ("data.splits", "StepRows.batches", "before"),
    "forward": ("train", "optimizer_step", "before"),
    "accumulation": ("accelerate", "Accelerator.backward", "after"),
    "gradient": ("train", "optimizer_step", "after"),
    "update": ("train", "update", "before"),
    "optimizer": ("torch.optim", "AdamW.step", "after"),
    "updated": ("train", "update", "after"),
    "log": ("runtime.directory", "RunDirectory.log", "before"),
    "logged": ("runtime.directory", "RunDirectory.log", "after"),
    "evaluation": ("runtime.session.session", "Session._record", "before"),
    "evaluated": ("runtime.session.session", "Session._record", "after"),
    "save": ("runtime.checkpoints.store", "save_file", "before"),
    "file": ("runtime.checkpoints.store", "save_file", "after"),
    "sync": ("runtime.files", "os.fsync", "after"),
    "rename": ("os", "replace", "before"),
    "renamed": ("os", "replace", "after"),
    "prune": ("runtime.checkpoints.store", "_discard", "before"),
    "pruned": ("runtime.checkpoints.store", "_discard", "after"),
    "final": ("models.save", "Final.save", "after"),
    "summary": ("runtime.directory", "RunDirectory.finish", "before"),
    "finished": ("runtime.directory", "RunDirectory.finish", "after"),
}
OF_PPO = {
    "rollout": ("rollout.steps", "rollout", "before"),
    "sampled": ("rollout.experience", "respond", "after"),
    "rolled out": ("rollout.steps", "rollout", "after"),
}


def die(module, name, when, number):
    """Have this process killed around the `number`-th call of a function."""
    import importlib

    *owners, last = name.split(".")
    owner = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    real, calls = getattr(owner, last), []

    def counted(*given, **named):
        calls.append(1)
        if len(calls) == number and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*given, **named)
        if len(calls) == number and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, last, counted)


def prepare(point, number):
    """Few samples an evaluation: they are most of the time of a small run."""
    from runtime.sources import heldout

    heldout.HELDOUT_SAMPLES = 8
    if point is not None:
        die(*(POINTS | OF_PPO)[point], number)


def start(loss, data, out, point=None, number=0):
    source = ("--data", data) if loss != "ppo" else ()
    flags = (*FLAGS["all"], *FLAGS["ppo" if loss == "ppo" else "rows"])
    return run(
        "--loss", loss, *source, "--output_dir", out, *flags, before=partial(prepare, point, number)
    )


def newest(out):
    """Every byte of the newest checkpoint but those that a clock wrote."""
    folder = sorted((out / "checkpoints").iterdir())[-1]
    tensors = {f.name: f.read_bytes() for f in folder.glob("*.safetensors")}
    state = json.loads((folder / "state.json").read_text("utf-8"))
    for name in ("seconds", "elapsed", "logged"):
        state.pop(name)
    return folder.name, tensors, state


def left(out):
    """All that must not depend on whether the run was interrupted."""
    samples = out / "samples.jsonl"
    texts = samples.read_text("utf-8") if samples.exists() else ""
    return weights(out), timeless(out), newest(out), texts


def interrupted(loss, data, out, point, number, whole):
    """What is wrong with a run that was killed there and started again; None where nothing is.

    "not reached": it has fewer such calls.
    """
    killed = start(loss, data, out, point, number)
    if killed.code == 0:
        return "not reached"
    if killed.code != -signal.SIGKILL:
        return f"ended with {killed.code}: {killed.err}"
    if read_json(out / "status.json").get("state") == "finished":
        return None if left(out) == whole else "finished, but not the same"
    again = start(loss, data, out)
    if again.code != 0:
        return f"could not go on: {again.code}: {again.err}"
    return None if left(out) == whole else "the run that went on is another"


def main(results):
    from benchmarks.record import commit, machine
    from runtime.report import versions

    begun, wrong, counts = time.time(), [], {}
    with tempfile.TemporaryDirectory() as folder:
        data = write_rows(Path(folder) / "data", *pocket_rows(24, 8))
        for loss in LOSSES:
            out = Path(folder) / loss
            done = start(loss, data, out)
            assert done.code == 0, done.err
            whole = left(out)
            for point in (*POINTS, *(OF_PPO if loss == "ppo" else ())):
                for number in range(1, 200):
                    out = Path(folder) / f"{loss}-{point}-{number}"
                    found = interrupted(loss, data, out, point, number, whole)
                    if found == "not reached":
                        break
                    counts[f"{loss}/{point}"] = number
                    if found is not None:
                        wrong.append({"loss": loss, "point": point, "call": number, "what": found})
                        print(wrong[-1], flush=True)
                print(
                    f"{loss} {point}: {number - 1} kills, {time.time() - begun:.0f} s", flush=True
                )
    about = {
        "command": f"python tests/interruptions.py {results}",
        "steps": STEPS,
        "kills": counts,
        "kills in all": sum(counts.values()),
        "not the same": wrong,
        "seconds": round(time.time() - begun),
        "commit": commit(),
        "versions": versions(),
        "machine": machine(),
    }
    Path(results).write_text(json.dumps(about, indent=2) + "\n", "utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
