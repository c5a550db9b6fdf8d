"""Two processes on this machine, joined by gloo; and processes that are not left behind."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

import psutil
import torch
from accelerate import Accelerator
from runs import OFFLINE, ROOT

# --standalone: torchrun picks a free port itself, so that runs at the same time do not meet.
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]


def run_on_two_ranks(script, out, timeout=300):
    """Start a script of this folder by torchrun, with the folder it is to write to."""
    command = [*TORCHRUN, Path(__file__).parent / script, out]
    done = finish(command, timeout=timeout, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stdout + done.stderr


def run_rank(main):
    """Call `main(out, accelerator)` in a process of `run_on_two_ranks`, then end the group.

    torch 2.13: where DDP is the last owner of a gloo group, its destructor waits for gloo's thread
    and holds the GIL, which that thread may be waiting for. So DDP goes first, the group after it.
    """
    accelerator = Accelerator(cpu=True)
    group = torch.distributed.group.WORLD
    main(Path(sys.argv[1]), accelerator)
    accelerator.end_training()
    del accelerator, group  # in this order: the accelerator owns what it prepared


# ---------------------------------------------------------------- whole trees of processes


def finish(command, *, cwd=ROOT, timeout=300, **env):
    """The finished process; a variable that is None is taken out of its environment.

    A process that is not done in time ends the test, with the stacks of all its Python threads and
    those of the processes that it started. None of them is left, however this function is left.
    """
    # SIGABRT then prints the stacks, even while a thread holds the GIL
    env = os.environ | OFFLINE | {"PYTHONFAULTHANDLER": "1"} | env
    command = [str(part) for part in command]
    text = {"mode": "w+", "encoding": "utf-8", "errors": "replace"}
    with TemporaryFile(**text) as out, TemporaryFile(**text) as err:
        process = subprocess.Popen(
            ["sh", "-c", 'ulimit -c 0; exec "$@"', "sh", *command],  # no core files
            cwd=cwd,
            env={name: value for name, value in env.items() if value is not None},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        late = False
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            end(process, err if late else None)
        for file in (out, err):
            file.seek(0)
        done = subprocess.CompletedProcess(command, process.returncode, out.read(), err.read())
    assert not late, f"{command} was not done in {timeout} s\n{done.stdout}{done.stderr}"
    return done


def end(process, stacks=None):
    """Kill a process and all below it; before that, let them print their stacks to a file."""
    if process.poll() is not None:
        return
    # All are stopped first: torchrun would start others or kill them, and a rank whose peer ends
    # would go on. (A signal to the process group is not enough: torchrun's ranks have their own.)
    root, tree = psutil.Process(process.pid), []
    while new := [p for p in (root, *root.children(recursive=True)) if p not in tree]:
        for found in new:
            with suppress(psutil.NoSuchProcess):
                found.suspend()
        tree += new
    for found in reversed(tree):
        with suppress(psutil.NoSuchProcess):
            if stacks:
                print(f"\n---- {found.pid}: {' '.join(found.cmdline())}", file=stacks, flush=True)
                found.send_signal(signal.SIGABRT)
                found.resume()
                with suppress(AssertionError):
                    wait_for(lambda found=found: gone(found), 10)
            found.kill()
    process.wait()
    wait_for(lambda: all(map(gone, tree)))


def wait_for(condition, seconds=120):
    """What the condition is as soon as it holds."""
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        with suppress(OSError, ValueError, IndexError, psutil.NoSuchProcess):
            if found := condition():
                return found
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def gone(process):
    """Whether a process has ended, its parent informed or not."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
