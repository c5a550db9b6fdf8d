"""The run directory: what a run leaves, written so that a crash never leaves half a file.

config.json    every flag as resolved, where each came from, versions, the command
status.json    running, finished or failed, with the exit code and the reason
metrics.jsonl  one object a step, full precision: the source of truth
summary.json   before and after on the held-out rows, and what the run took
curves.png     the metrics drawn
final/         the trained model, as save_pretrained lays it out, with tokenizer and model card
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock, Timeout

from data.errors import CANNOT_CREATE, InputError
from runtime.files import read_json, write_json

RECORDS = ("config.json", "status.json", "metrics.jsonl", "samples.jsonl", "summary.json")
FILES = (*RECORDS, "curves.png")


class RunDirectory:
    """One run's hold on its directory; with `writes` False (other ranks, dry runs) it is inert."""

    def __init__(self, path: Path, *, overwrite: bool, writes: bool = True) -> None:
        """Take the directory; what an earlier run left there stays until `begin`.

        Raises:
            InputError: it cannot be made, another run holds it, or it holds an earlier run and
                `overwrite` is False.
        """
        self.path = path
        self.writes = writes
        self._metrics: TextIO | None = None
        self._status = {"pid": os.getpid(), "host": socket.gethostname(), "started": _now()}
        if not writes:
            return
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(path / "run.lock")
            self._lock.acquire(timeout=0)
        except Timeout:
            owner = read_json(self.path / "status.json")
            who = f"process {owner.get('pid')} on {owner.get('host')}, since {owner.get('started')}"
            if owner.get("state") not in ("waiting", "running"):  # an earlier run's
                who = "it has just begun"
            raise InputError(f"{path}: a run is going on here ({who})", CANNOT_CREATE) from None
        except OSError as error:
            raise InputError(
                f"{path}: {error.strerror}; see --output_dir", CANNOT_CREATE
            ) from error
        metrics = path / "metrics.jsonl"
        self._occupied = metrics.exists() and metrics.stat().st_size > 0
        if self._occupied and not overwrite:
            state = read_json(self.path / "status.json").get("state", "unfinished")
            self._lock.release()
            raise InputError(
                f"{path} holds a run already ({state}); give --output_dir another directory,"
                " or --overwrite to replace it",
                CANNOT_CREATE,
            )
        self._set_status("waiting")

    def begin(self, config: dict[str, Any]) -> None:
        """All that the user gave has been checked: clear away an earlier run and start this one."""
        if not self.writes:
            return
        for name in FILES:
            (self.path / name).unlink(missing_ok=True)
        for name in ("final", "final.partial"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        self._metrics = open(self.path / "metrics.jsonl", "w", encoding="utf-8")
        write_json(self.path / "config.json", config)
        self._set_status("running")

    def log(self, record: dict[str, Any]) -> None:
        """Append one object to metrics.jsonl; it is in the file when this returns."""
        if self._metrics:
            # NaN is not JSON: what was not finite is logged as null.
            finite = {k: v if math.isfinite(v) else None for k, v in record.items()}
            self._metrics.write(json.dumps(finite) + "\n")
            self._metrics.flush()

    def log_samples(self, step: int, samples: list[dict[str, Any]]) -> None:
        """Append what an evaluation sampled to samples.jsonl."""
        if self._metrics and samples:
            with open(self.path / "samples.jsonl", "a", encoding="utf-8") as file:
                for row in samples:
                    file.write(json.dumps({"step": step} | row) + "\n")

    def finish(
        self,
        summary: dict[str, Any],
        save: Callable[[Path], None],
        *,
        card: str,
        draw: Callable[[Path, Path, str], None],
    ) -> None:
        """Save the model under another name first, so that what is called final/ is complete.

        Args:
            save: writes model and tokenizer into a directory.
        """
        if not self.writes:
            return
        partial = self.path / "final.partial"
        save(partial)
        (partial / "README.md").write_text(card, "utf-8")
        os.replace(partial, self.path / "final")
        write_json(self.path / "summary.json", summary)
        title = f"{summary['loss']}, {summary['model']}, {summary['data']}"
        draw(self.path / "metrics.jsonl", self.path / "curves.png", title)
        self._set_status("finished", exit_code=0)

    def fail(self, reason: str, exit_code: int) -> None:
        """Record why the run ended (launchers lose the exit code), and let go."""
        if self.writes and (self._metrics or not self._occupied):
            with contextlib.suppress(OSError):  # a full disk may be the reason
                self._set_status("failed", reason=reason, exit_code=exit_code)
        self.close()

    def close(self) -> None:
        if self._metrics:
            self._metrics.close()
        if self.writes:
            self._lock.release()

    def _set_status(self, state: str, **more: object) -> None:
        if state == "running" or not self._occupied or self._metrics:
            write_json(
                self.path / "status.json", {"state": state, **self._status, "at": _now(), **more}
            )


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
