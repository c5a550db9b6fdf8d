"""Signals that ask a run to stop: it finishes its step, saves a checkpoint, and exits with 75.

SIGTERM is what launchers and clusters send, SIGINT is Ctrl-C, SIGHUP a closed terminal, SIGUSR1
what Slurm sends some time before a job's end (`--signal=USR1@60`).

What the first one does depends on how far the run is:

    starting    Python still imports: one line, and the process ends
    preparing   data are read, models are loaded: Interrupted is raised, there is nothing to save
    training    the run looks at `requested` between two steps; a step that takes longer than
                PATIENCE is given up by Interrupted, as launchers kill after 30 seconds
    ending      the run is saving already: nothing

A second one ends the process at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from types import FrameType
from typing import Literal

from data.errors import INTERRUPTED

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
)
PATIENCE = 8.0  # seconds that a step may still take
# One Ctrl-C reaches a rank twice: from the terminal, and by way of its launcher.
SAME, OTHER = 0.5, 5.0  # seconds after which the same signal, or another, is a second one

Phase = Literal["starting", "preparing", "training", "ending"]


class Interrupted(BaseException):
    """The run is to end here. No Exception: a reward function must not be able to swallow it."""


class StopSignals:
    """The signals that this process was sent."""

    def __init__(self) -> None:
        self.phase: Phase = "starting"
        self.requested: str | None = None  # the first signal's name
        self._at = 0.0
        self._held = False
        self._to_the_end = False
        self._before: dict[int, object] = {}

    def listen(self, *, to_the_end: bool = False) -> None:
        """Handle the signals from now on; a process handles them once, in its main thread.

        `to_the_end`: the run is all that this process does, see `close`.
        """
        if self._before or threading.current_thread() is not threading.main_thread():
            return
        self._to_the_end = to_the_end
        for number in SIGNALS:
            if signal.getsignal(number) is signal.SIG_IGN and number == signal.SIGHUP:
                continue  # nohup
            self._before[number] = signal.signal(number, self._receive)
        if hasattr(signal, "SIGALRM"):
            self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._late)

    def enter(self, phase: Phase) -> None:
        """The run has come so far. A signal that got lost on the way is raised now."""
        self.phase = phase
        if self.requested and phase in ("preparing", "training"):
            raise Interrupted
        if phase == "ending" and hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)

    def close(self, exit_code: int) -> None:
        """The run has ended. Forget the signals that came, and handle them as before `listen`.

        In a process of its own a signal ends what is left of it, with the run's exit code: a run
        that is finished has not failed because a signal came a moment after.
        """
        if hasattr(signal, "setitimer") and self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            ended = number in SIGNALS and self._to_the_end
            signal.signal(number, partial(_exit, exit_code) if ended else handler)  # type: ignore[arg-type]
        self.__init__()  # type: ignore[misc]

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Here weights and state change together: Interrupted is not raised inside."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        now = time.monotonic()
        if self.requested:
            if now - self._at > (SAME if name == self.requested else OTHER):
                _say(f"a second signal ({name}): ended at once")
                os._exit(INTERRUPTED)
            return
        self.requested, self._at = name, now
        if self.phase == "starting":
            if os.environ.get("RANK", "0") == "0":
                _say(f"stopped by {name} while it started; the same command starts it")
            os._exit(INTERRUPTED)
        if self.phase == "preparing":
            raise Interrupted
        if self.phase == "training" and hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, PATIENCE)

    def _late(self, number: int, frame: FrameType | None) -> None:
        if self.phase != "training":
            return
        if self._held:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
        else:
            raise Interrupted


def _exit(exit_code: int, *_: object) -> None:
    os._exit(exit_code)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # by the descriptor: stderr's lock may be held
        os.write(2, f"train.py: {line}\n".encode())


SIGNALLED = StopSignals()  # a process has one
