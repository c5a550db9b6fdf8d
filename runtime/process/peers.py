"""What the processes of a run know of one another beside their collectives.

A collective tells little: a rank that died shows as "Connection closed by peer", one that was
stopped does not show at all. So every rank counts up a number in the launcher's key-value store
once a second, and reads those of the others; one that fails says there why. Then whatever ends the
run, the others end too within a bounded time, and what the user reads is the first cause.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from data.errors import LOST

BEAT = 1.0  # seconds between two
SILENCE = 60.0  # seconds after which a rank counts as lost: a machine may be busy, or swap
GRACE = 10.0  # seconds that a rank's own thread has to end by itself, once another has failed


@dataclass(frozen=True)
class Failure:
    """Why a rank ended, or was given up."""

    rank: int
    reason: str
    exit_code: int


class Peers:
    """The other ranks, as this one sees them; with one process there are none."""

    def __init__(self) -> None:
        self.failure: Failure | None = None  # the first of all ranks
        self._store: Any = None
        self._ended = threading.Event()
        self._on_failure: Callable[[Failure], object] = lambda failure: None
        self.rank, self.ranks = 0, 1

    def join(self, rank: int, ranks: int, on_failure: Callable[[Failure], object]) -> None:
        """Start to watch.

        Args:
            on_failure: called once, on a thread of its own, when another rank has failed and this
                one's main thread has not ended within GRACE seconds. The process ends after it.
        """
        self.rank, self.ranks, self._on_failure = rank, ranks, on_failure
        if ranks == 1 or "MASTER_ADDR" not in os.environ:
            return
        self._store = self._connect()
        self._set(self._store, f"beat/{self.rank}", "0")
        threading.Thread(target=self._watch, args=(self._connect(),), daemon=True).start()

    def leave(self) -> None:
        """This rank has ended as it should: the others need not miss it."""
        self._ended.set()
        if self._store is not None:
            self._set(self._store, f"beat/{self.rank}", "done")
            self._store = None

    def fail(self, reason: str, exit_code: int) -> Failure:
        """Tell the others why this rank ends; returns the first failure of all ranks."""
        mine = self.failure or Failure(self.rank, reason, exit_code)  # another's, found out here
        if self._store is None:
            return mine
        self._ended.set()
        try:
            first = self._store.compare_set("failure", "", json.dumps(asdict(mine)))
            return Failure(**json.loads(first))
        except (RuntimeError, ValueError):
            return self.failure or mine

    def cause(self) -> Failure | None:
        """Why a collective failed, if that is another rank's end; waited for a few seconds."""
        stop = time.monotonic() + 3 * BEAT
        before = self._beats(self._store) if self._store is not None else {}
        while self._store is not None and time.monotonic() < stop:
            if found := self._first(self._store):
                self.failure = found
                return found
            time.sleep(0.1)
        now = self._beats(self._store) if self._store is not None else {}
        silent = [rank for rank, beat in now.items() if beat == before.get(rank) != "done"]
        for rank in silent:
            if rank != self.rank:
                self.failure = self._lost(rank, "ended without a word: killed, most of the time")
                return self.failure
        return None

    def saved(self) -> None:
        """The first rank has saved what there is to save."""
        if self._store is not None:
            self._set(self._store, "saved", "yes")

    def wait_for_saved(self, seconds: float = 25.0) -> None:
        """Stay until then: a launcher kills the other ranks when one has ended."""
        stop = time.monotonic() + seconds
        while self._store is not None and time.monotonic() < stop:
            try:
                if self._store.check(["saved"]):
                    return
            except RuntimeError:
                return
            time.sleep(0.1)

    # ---- the thread that watches

    def _watch(self, store: Any) -> None:
        count, last, moved = 0, dict[int, str](), dict[int, float]()
        while not self._ended.wait(BEAT):
            count += 1
            try:
                store.set(f"beat/{self.rank}", str(count))
                self.failure = self._first(store)
                beats = self._beats(store)
            except RuntimeError:
                # The launcher or the first rank's machine is gone. Its end reaches this process as
                # a signal or by the next collective.
                return
            now = time.monotonic()
            for rank, beat in beats.items():
                if beat != last.get(rank):
                    last[rank], moved[rank] = beat, now
                elif beat != "done" and now - moved[rank] > SILENCE and rank != self.rank:
                    reason = (
                        f"has not answered for {SILENCE:.0f} s: stopped, or its machine is gone"
                    )
                    self.failure = self.failure or self._lost(rank, reason)
            if self.failure is not None:
                self._end(store, self.failure)
                return

    def _end(self, store: Any, failure: Failure) -> None:
        """End this process, by its own thread if that comes to it, else from here."""
        try:
            store.compare_set("failure", "", json.dumps(asdict(failure)))
        except RuntimeError:
            pass
        # A rank that does not answer never ends a collective: there is nothing to wait for.
        if not self._ended.wait(0.0 if failure.exit_code == LOST else GRACE):
            self._on_failure(failure)
            os._exit(failure.exit_code)

    def _lost(self, rank: int, reason: str) -> Failure:
        return Failure(rank, f"process {rank} of {self.ranks} (counted from 0) {reason}", LOST)

    # ---- the store

    def _connect(self) -> Any:
        """The launcher's store; a thread needs a connection of its own."""
        store = dist.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=30),
        )
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return dist.PrefixStore(f"alignment-losses/{attempt}", store)  # type: ignore[attr-defined]

    def _first(self, store: Any) -> Failure | None:
        if not store.check(["failure"]):
            return None
        return Failure(**json.loads(store.get("failure")))

    def _beats(self, store: Any) -> dict[int, str]:
        try:
            names = [f"beat/{rank}" for rank in range(self.ranks)]
            there = [rank for rank, name in enumerate(names) if store.check([name])]
            return {rank: store.get(names[rank]).decode() for rank in there}
        except RuntimeError:
            return {}

    def _set(self, store: Any, name: str, value: str) -> None:
        try:
            store.set(name, value)
        except RuntimeError:  # the launcher is gone
            pass


PEERS = Peers()  # a process has one
