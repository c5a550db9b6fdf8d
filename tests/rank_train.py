"""Run by torchrun from test_peers.py: train.py with something that goes wrong on one rank.

rank_train.py HOW STEP FLAGS...
"""

import os
import signal
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from runtime.launch import die_with_launcher  # noqa: E402
from runtime.process.signals import SIGNALLED  # noqa: E402

SIGNALLED.listen()
die_with_launcher()

import train  # noqa: E402
from runtime.cli import parse_or_exit  # noqa: E402
from runtime.process import peers  # noqa: E402


def fail():
    raise ValueError("this reward wants no more")


HOW = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "first killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stands still": lambda: time.sleep(600),
    "fails": fail,
    "waits": lambda: time.sleep(0.5),
}

how, step, *flags = sys.argv[1:]
real, calls = train.step_gradient, []
peers.SILENCE = 5.0


def step_gradient(*given):
    calls.append(1)
    rank = "0" if how == "first killed" else "1"
    if how == "waits" or (os.environ["RANK"] == rank and len(calls) == int(step)):
        if how == "stands still":  # as one does that was sent SIGSTOP: no thread of it runs
            os.kill(os.getpid(), signal.SIGSTOP)
        HOW[how]()
    return real(*given)


train.step_gradient = step_gradient
sys.argv = ["train.py", *flags]
sys.exit(train.main(parse_or_exit(flags)))
