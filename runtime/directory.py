"""The run directory: what a run leaves, written so that a crash never leaves half a file.

run.json       the marker of a run directory, and the files in it that are ours
config.json    every flag as resolved, where each came from, versions, the command
status.json    waiting, running, stopped, failed or finished, with exit code and reason
metrics.jsonl  one object a step, full precision: the source of truth
samples.jsonl  what evaluations sampled
checkpoints/   what a run that ended early goes on from
summary.json   before and after on the held-out rows, and what the run took
curves.png     the metrics drawn
final/         the trained model, as save_pretrained lays it out, with tokenizer and model card
best/          that of the best evaluation (--keep_best); critic/ what PPO trained beside it

Only files that run.json lists are ever removed or replaced, links are not followed, and a folder
that has files but no run.json is refused.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from data.errors import CANNOT_CREATE, InputError
from data.files import check_file
from runtime.files import read_json, sync, sync_tree, write_json

MARKER = "run.json"
LOGS = ("metrics.jsonl", "samples.jsonl")
RECORDS = ("config.json", "status.json", *LOGS, "summary.json")
FILES = (*RECORDS, "curves.png")
CACHE = "reference.safetensors"  # keyed by all that it depends on: good for the next run too
BEFORE_MARKER = ("run.lock", f"{MARKER}.partial", CACHE)  # that a run makes or finds
ENDED = ("finished", "failed", "stopped")


class RunDirectory:
    """One run's hold on its directory; with `writes` False (other ranks, dry runs) it is inert."""

    def __init__(self, path: Path, *, overwrite: bool, writes: bool = True) -> None:
        """Take the directory; what an earlier run left there stays until `begin`.

        Raises:
            InputError: it cannot be made, it is not a run's, another run holds it, or it holds a
                finished run and `overwrite` is False.
        """
        self.path = path
        self.writes = writes
        self.unfinished = False  # an earlier run's, which this one is to go on with
        self.begun = False
        self.rescue: Callable[[], str] | None = None  # saves what can be saved when the run ends
        self._status = {"pid": os.getpid(), "host": socket.gethostname(), "started": _now()}
        self._earlier: dict[str, Any] = {}
        if not writes:
            return
        try:
            path.mkdir(parents=True, exist_ok=True)
            refuse_foreign(path)
            self._lock = FileLock(path / "run.lock", mode=0o644)
            self._lock.acquire(timeout=0)
        except Timeout:
            owner = read_json(self.path / "status.json")
            who = f"process {owner.get('pid')} on {owner.get('host')}, since {owner.get('started')}"
            if owner.get("state") in (None, *ENDED):  # an earlier run's
                who = "it has just begun"
            raise InputError(f"{path}: a run is going on here ({who})", CANNOT_CREATE) from None
        except OSError as error:
            raise InputError(
                f"{path}: {error.strerror}; see --output_dir", CANNOT_CREATE
            ) from error
        self._marker = read_json(path / MARKER) or {"made_by": "alignment-losses", "files": []}
        self._earlier = read_json(path / "status.json")
        occupied = (path / "config.json").exists()
        try:
            refuse_finished(path, overwrite=overwrite)
        except InputError:
            self._lock.release()
            raise
        self.unfinished = occupied and not overwrite
        self._occupied = occupied
        self._own(MARKER, "run.lock", "status.json")
        if not occupied:
            self._set_status("waiting")

    @property
    def earlier(self) -> str:
        """How the run that was here ended, for the user."""
        state = self._earlier.get("state", "unfinished")
        if state in ENDED:
            return f"{state}: {self._earlier.get('reason', 'no reason known')}"
        return f"process {self._earlier.get('pid')} ended without a word"

    def begin(self, config: dict[str, Any]) -> None:
        """All that the user gave has been checked: clear away an earlier run and start this one."""
        if not self.writes:
            return
        self._remove_ours()
        self.begun = True
        write_json(self.path / "config.json", config)
        self._own(*RECORDS)
        self._append("metrics.jsonl", "")
        self._set_status("running")

    def resume(self, config: dict[str, Any], logged: Mapping[str, int]) -> None:
        """Go on with the run that is here; of its logs keep the bytes that its checkpoint knows."""
        if not self.writes:
            return
        self.begun = True
        for name in LOGS:
            if self._plain(name).exists():
                os.truncate(self.path / name, logged.get(name, 0))
        write_json(self.path / "config.json", config)
        self._set_status("running")

    def log_sizes(self) -> dict[str, int]:
        """Bytes of the logs."""
        return {name: p.stat().st_size for name in LOGS if (p := self._plain(name)).exists()}

    def sync_logs(self) -> None:
        """Have the disk hold the logs."""
        for name in self.log_sizes():
            sync(self.path / name)

    def has(self, logged: Mapping[str, int]) -> bool:
        """Whether the logs are as long as a checkpoint says, or longer."""
        paths = {name: self.path / name for name in logged}
        return all(p.exists() and p.stat().st_size >= logged[n] for n, p in paths.items())

    def log(self, record: dict[str, Any]) -> None:
        """Append one object to metrics.jsonl; it is in the file when this returns."""
        # NaN is not JSON: what was not finite is logged as null.
        finite = {k: v if math.isfinite(v) else None for k, v in record.items()}
        self._append("metrics.jsonl", json.dumps(finite) + "\n")

    def log_samples(self, step: int, samples: list[dict[str, Any]]) -> None:
        """Append what an evaluation sampled to samples.jsonl."""
        rows = [json.dumps({"step": step} | row) + "\n" for row in samples]
        if rows:
            self._append("samples.jsonl", "".join(rows))

    def save(self, name: str, write: Callable[[Path], None]) -> None:
        """Make or replace the folder `name`, which is whole or not there.

        Args:
            write: writes the files into a folder.
        """
        if not self.writes:
            return
        partial = self.path / f"{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            write(partial)
            sync_tree(partial)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)  # the room that it took may be needed
            raise
        files = [f.relative_to(partial).as_posix() for f in partial.rglob("*") if f.is_file()]
        self._own(*(f"{name}/{file}" for file in files))
        folder = self.path / name
        if folder.is_dir() and not folder.is_symlink():
            self._remove_ours(below=f"{name}/")
            if folder.exists():  # the user has put something there
                for file in files:
                    os.replace(partial / file, folder / file)
                shutil.rmtree(partial)
                return
        os.replace(partial, folder)

    def finish(self, summary: dict[str, Any]) -> None:
        """Final weights are saved: with the summary the run is finished, whatever comes after."""
        if self.writes:
            write_json(self.path / "summary.json", summary)
            self._set_status("finished", exit_code=0)

    def own(self, *names: str) -> None:
        """List more files as the run's own, before they are made."""
        if self.writes:
            self._own(*names)

    def fail(self, reason: str, exit_code: int, state: str = "failed") -> None:
        """Record why the run ended (launchers lose the exit code), and let go."""
        done = read_json(self.path / "status.json").get("state") in ENDED and self.begun
        if self.writes and (self.begun or not self._occupied) and not done:
            with contextlib.suppress(OSError):  # a full disk may be the reason
                self._set_status(state, reason=reason, exit_code=exit_code)
        self.close()

    def report_lost(self, reason: str, exit_code: int) -> None:
        """Record on another rank's behalf that the first rank, which writes here, is gone."""
        found = read_json(self.path / "status.json")
        if found.get("state") == "running":
            with contextlib.suppress(OSError):
                self._status = {name: found.get(name) for name in self._status}
                self._set_status("failed", reason=reason, exit_code=exit_code)

    def close(self) -> None:
        if self.writes:
            self._lock.release()

    # ---- what is ours

    def _own(self, *names: str) -> None:
        """List files as ours, before they are made."""
        listed = sorted({*self._marker["files"], *names})
        if listed != self._marker["files"] or not (self.path / MARKER).exists():
            self._marker["files"] = listed
            write_json(self.path / MARKER, self._marker)

    def _remove_ours(self, below: str = "") -> None:
        """Remove the files that run.json lists, then their folders where nothing else is left."""
        held = {MARKER, "run.lock", "status.json"}
        names = [n for n in self._marker["files"] if n not in held and n.startswith(below)]
        folders = set()
        for name in names:
            path = self.path / name
            parents = [p for p in path.parents if self.path in p.parents]
            outside = self.path not in path.parents or ".." in Path(name).parts
            if outside or any(p.is_symlink() for p in parents):
                continue
            folders |= set(parents)
            if path.is_symlink() or path.is_file():
                path.unlink()
        if not below:
            for name in (*(f"{n}.partial" for n in ("final", "best", "critic")),):
                shutil.rmtree(self.path / name, ignore_errors=True)
        for folder in sorted(folders, key=lambda p: -len(p.parts)):
            with contextlib.suppress(OSError):  # not empty: something of the user's is in it
                folder.rmdir()

    def _plain(self, name: str) -> Path:
        """A file of ours to append to; a link that was laid in its place is removed."""
        path = self.path / name
        if path.is_symlink():
            path.unlink()
        return path

    def _append(self, name: str, text: str) -> None:
        if self.writes and self.begun:
            with open(self._plain(name), "a", encoding="utf-8") as file:
                file.write(text)

    def _set_status(self, state: str, **more: object) -> None:
        status = {"state": state, **self._status, "at": _now(), **more}
        write_json(self.path / "status.json", status)


def check_directory(path: Path, *, overwrite: bool) -> None:
    """Raise the InputError that a run would end with, and write nothing."""
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = "no directory" if not there.is_dir() else "it may not be written to"
        raise InputError(f"{path}: {there}: {reason}; see --output_dir", CANNOT_CREATE)
    if path.exists():
        refuse_foreign(path)
        refuse_finished(path, overwrite=overwrite)


def refuse_foreign(path: Path) -> None:
    """Raise InputError for a folder with files that no run has made."""
    for file in path.iterdir():
        check_file(file, f"{path}: {file.name}", CANNOT_CREATE)
    strange = [p.name for p in path.iterdir() if p.name not in BEFORE_MARKER]
    made_by = read_json(path / MARKER).get("made_by")
    if strange and made_by != "alignment-losses":
        raise InputError(
            f"{path} is no run directory and has files ({sorted(strange)[0]}); give"
            " --output_dir a new or an empty one",
            CANNOT_CREATE,
        )


def refuse_finished(path: Path, *, overwrite: bool) -> None:
    """Raise InputError for the directory of a finished run, unless it may be replaced."""
    finished = read_json(path / "status.json").get("state") == "finished"
    if finished and (path / "config.json").exists() and not overwrite:
        raise InputError(
            f"{path} holds a finished run; give --output_dir another directory,"
            " or --overwrite to replace it",
            CANNOT_CREATE,
        )


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
