"""Long runs that are killed, stopped and damaged every few seconds, and end as undisturbed ones do.

    python tests/soak.py benchmarks/results/soak.json [--steps 2000] [--losses sft,dpo,ppo]

Each loss trains on pocket twice: once in peace, its memory read every second, and once with
SIGKILL, SIGTERM or a damaged newest checkpoint at random moments.
"""

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import psutil  # noqa: E402
from runs import OFFLINE, ROOT, timeless, weights  # noqa: E402

from data.errors import CANNOT_CREATE, INTERRUPTED  # noqa: E402
from runtime.files import read_json, write_json  # noqa: E402


def start(loss, steps, out):
    command = [sys.executable, ROOT / "train.py", "--loss", loss, "--max_steps", steps]
    command += ["--save_every", 25, "--keep", 3, "--output_dir", out]
    return subprocess.Popen(
        [str(part) for part in command],
        env=os.environ | OFFLINE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def in_peace(loss, steps, out):
    """(bytes of memory, a second apart) of a run that nobody disturbs."""
    process, memory = start(loss, steps, out), []
    while process.poll() is None:
        memory.append(psutil.Process(process.pid).memory_info().rss)
        time.sleep(1)
    assert process.returncode == 0, process.stderr.read()
    return memory


def slope(memory):
    """Bytes a minute over the second half, by least squares: loading and the first steps grow."""
    half = memory[len(memory) // 2 :]
    if len(half) < 3:
        return 0.0
    return 60 * statistics.linear_regression(range(len(half)), half).slope


def damage(out, rng):
    """Spoil a file of the newest checkpoint; whether there was one."""
    folders = sorted((out / "checkpoints").glob("step-??????"))
    if len(folders) < 2:  # with none left the run would begin anew: allowed, but no test
        return False
    file = rng.choice(sorted(folders[-1].iterdir()))
    content = bytearray(file.read_bytes())
    if rng.random() < 0.5:
        content = content[: rng.randrange(len(content))]
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    return True


def disturbed(loss, steps, out, rng):
    """What was done to a run until it finished."""
    done = {"SIGKILL": 0, "SIGTERM": 0, "damaged": 0}
    while True:
        process = start(loss, steps, out)
        try:
            code = process.wait(rng.uniform(8, 20))
        except subprocess.TimeoutExpired:
            name = rng.choice(["SIGKILL", "SIGTERM"])
            process.send_signal(getattr(signal, name))
            code = process.wait(60)
            done[name] += 1
            told = process.stderr.read()
            assert code in (0, -signal.SIGKILL, INTERRUPTED), (code, told)
            done["damaged"] += rng.random() < 0.3 and damage(out, rng)
        if code in (0, CANNOT_CREATE):
            return done
        assert code in (-signal.SIGKILL, INTERRUPTED), (code, process.stderr.read())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--losses", default="sft,reward,dpo,orpo,ppo")
    given = parser.parse_args()
    from benchmarks.record import commit, machine
    from runtime.report import versions

    # The file has every loss of its own run: it can be filled one loss at a time.
    found = read_json(Path(given.results)).get("losses", {})
    for loss in given.losses.split(","):
        with tempfile.TemporaryDirectory() as folder:
            whole, out, began = Path(folder) / "whole", Path(folder) / "out", time.monotonic()
            memory = in_peace(loss, given.steps, whole)
            done = disturbed(loss, given.steps, out, random.Random(loss))
            found[loss] = done | {
                "same weights": weights(out) == weights(whole),
                "same metrics": timeless(out) == timeless(whole),
                "memory, bytes a minute": round(slope(memory)),
                "memory, most bytes": max(memory),
                "seconds": round(time.monotonic() - began),
                "steps": given.steps,
                "commit": commit(),
            }
        print(loss, found[loss], flush=True)
        about = {"command": f"python tests/soak.py {given.results}", "losses": found}
        about |= {"commit": commit(), "versions": versions(), "machine": machine()}
        write_json(Path(given.results), about)
    return 0 if all(one["same weights"] and one["same metrics"] for one in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
