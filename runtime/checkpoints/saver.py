"""When a run is saved: every so often beside the training, and once more however it ends."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from data.errors import InputError
from runtime.checkpoints.content import capture, to_cpu
from runtime.checkpoints.store import Checkpoint, Damaged, Store
from runtime.directory import RunDirectory
from runtime.guards.outputs import say
from runtime.process.signals import SIGNALLED
from runtime.state import TrainState

EVERY_SECONDS = 600.0  # between two saves, where --save_every is not given


@dataclass
class Saver:
    """The checkpoints of a run; on other ranks than the first it does nothing.

    Nothing here is a collective: the first rank can save when the others are gone.
    """

    directory: RunDirectory
    module: nn.Module  # what is trained, not wrapped for DDP
    optimizer: torch.optim.Optimizer
    scaler: Any
    keep: int
    every: int | None  # steps; None: EVERY_SECONDS

    saved: int = -1  # the step of the newest checkpoint on the disk
    _good: TrainState | None = None  # the run's state with the weights as they are now
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _thread: threading.Thread | None = None
    _error: Exception | None = None
    _last: float = field(default_factory=time.monotonic)

    @property
    def store(self) -> Store:
        return Store(self.directory.path / "checkpoints")

    # ---- to go on

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; what is wrong with newer ones is said."""
        if not self.directory.writes:
            return None
        self.store.clean()
        for step in self.store.steps():
            try:
                checkpoint = self.store.read(step)
                if not self.directory.has(checkpoint.state.get("logged", {})):
                    raise Damaged("metrics.jsonl or samples.jsonl ends before it")
            except Damaged as damage:
                say(f"checkpoint of step {step} left aside: {damage}")
                continue
            self.saved = step
            return checkpoint
        return None

    # ---- while the run goes on

    @contextlib.contextmanager
    def changing(self, state: TrainState) -> Iterator[None]:
        """Around an update: weights, state and logs change together or the run is not saved."""
        with self._lock, SIGNALLED.held():
            before, self._good = self._good, None
            try:
                yield
            except InputError:  # too many steps were skipped: this one changed nothing either
                self._good = before
                raise
            # Of steps that changed no weight the first is gone back to, when they end the run.
            skipped = state.bad_steps > 0 and self.scaler is None
            self._good = before if skipped else self._noted(state)

    def note(self, state: TrainState) -> None:
        """The state has changed without the weights: an evaluation was recorded."""
        with self._lock:
            if state.bad_steps == 0 or self._good is None:
                self._good = self._noted(state)

    def save_if_due(self, state: TrainState) -> None:
        """Every so many steps, or EVERY_SECONDS after the last save.

        Raises:
            OSError, SafetensorError: the save before this one failed.
        """
        if not self.directory.writes or state.step == self.saved:
            return
        if self.every is None:
            due = time.monotonic() - self._last >= EVERY_SECONDS
        else:
            due = state.step % self.every == 0
        if due:
            self.join()
            self._last = time.monotonic()
            # Copied first: what is written must not change while the training goes on.
            checkpoint = to_cpu(self._capture(self._noted(state)))
            self._thread = threading.Thread(target=self._write_beside, args=(checkpoint,))
            self._thread.start()
        elif self._error is not None:
            self.join()

    def join(self) -> None:
        """Wait for the save that goes on.

        Raises:
            OSError, SafetensorError: it failed.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    # ---- when it ends

    def rescue(self) -> str:
        """Save the last whole step, unless it is saved; what there is now, for the user.

        Called when the run ends early, from whichever thread sees that.
        """
        if not self.directory.writes:
            return ""
        with self._lock:
            try:
                with contextlib.suppress(OSError, SafetensorError):
                    self.join()
                if self._good is not None and self._good.step > max(self.saved, 0):
                    self._write(self._capture(self._good))
                if self.saved >= 0:
                    return f"saved after step {self.saved}; the same command goes on from there"
                return "nothing is saved, for no step was made"
            except (OSError, SafetensorError) as error:
                reason = f"its last steps could not be saved ({error})"
                if self.saved < 0:
                    return reason
                return (
                    f"{reason}; the checkpoint of step {self.saved} is good: the same command goes"
                    f" on from there, and python train.py --export {self.directory.path} makes a"
                    " model of it"
                )

    def remove(self) -> None:
        """The run is finished: nothing goes on from its checkpoints, unless they were asked for."""
        self.join()
        if self.directory.writes and self.every is None:
            self.store.remove()

    # ---- inner

    def _noted(self, state: TrainState) -> TrainState:
        if self.directory.writes:
            state.logged = self.directory.log_sizes()
        return state.copy()

    def _capture(self, state: TrainState) -> Checkpoint:
        self.directory.sync_logs()
        return capture(self.module, self.optimizer, state, self.scaler)

    def _write(self, checkpoint: Checkpoint) -> None:
        self.store.write(checkpoint, self.keep)
        self.saved = checkpoint.step

    def _write_beside(self, checkpoint: Checkpoint) -> None:
        if sys.platform == "linux":  # where a thread has a priority of its own
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        try:
            self._write(checkpoint)
        except (OSError, SafetensorError) as error:
            self._error = error
