"""A folder of checkpoints: each is whole, with a checksum of every file, or it is not there.

    checkpoints/step-000120/model.safetensors, optimizer.safetensors, state.json, MANIFEST.json

A checkpoint is written into `step-000120.partial`, every file and then the folder is synced to the
disk, and the folder is renamed: kill -9 or a power failure at any moment leaves either all of it or
a folder that nobody reads. An older one is removed only when the new one has been read back.
Tensors are in safetensors and all else in JSON: nothing in a checkpoint can run.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from data.files import sha256
from runtime.files import by_umask, sync

MANIFEST = "MANIFEST.json"
STATE = "state.json"
FORMAT = 1  # of what is in a checkpoint; another one is not read
NAME = re.compile(r"step-(\d{6,})")


class Damaged(Exception):
    """A checkpoint that cannot be used; the reason for the user."""


@dataclass(frozen=True)
class Checkpoint:
    """A run after `step` optimizer steps."""

    step: int
    state: Mapping[str, Any]  # JSON
    tensors: Mapping[str, Mapping[str, Tensor]]  # {"model": {name: tensor}, ...}, a file each


@dataclass(frozen=True)
class Store:
    folder: Path

    def write(self, checkpoint: Checkpoint, keep: int) -> None:
        """Write one, then remove all but the newest `keep`.

        Raises:
            OSError, SafetensorError: the disk is full or failed; the checkpoints before it are as
                they were.
        """
        if self.folder.is_symlink():
            raise OSError(f"{self.folder} is a link, which is not followed; make a folder of it")
        self.folder.mkdir(exist_ok=True)
        path = self.path(checkpoint.step)
        partial = path.with_name(f"{path.name}.partial")
        self.clean()
        partial.mkdir()
        try:
            for stem, tensors in checkpoint.tensors.items():
                save_file(dict(tensors), partial / f"{stem}.safetensors")
            (partial / STATE).write_text(json.dumps(checkpoint.state), "utf-8")
            files = sorted(partial.iterdir())
            for file in files:
                by_umask(file)
            sums = {f.name: {"bytes": f.stat().st_size, "sha256": sha256(f)} for f in files}
            manifest = {"format": FORMAT, "step": checkpoint.step, "files": sums}
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
            for file in [*files, partial / MANIFEST, partial]:
                sync(file)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)  # the room that it took may be needed
            raise
        if path.exists():  # damaged, or of a run that went on from an older one
            _discard(path)
        os.replace(partial, path)
        sync(self.folder)
        written = {name: list(tensors) for name, tensors in checkpoint.tensors.items()}
        self._check_readable(path, written)
        for old in self.steps()[keep:]:
            _discard(self.path(old))

    def read(self, step: int) -> Checkpoint:
        """The checkpoint of a step, every byte checked.

        Raises:
            Damaged: a file is missing, torn, changed, or of another version of this program.
        """
        path = self.path(step)
        manifest = _read_object(path / MANIFEST)
        if manifest.get("format") != FORMAT or manifest.get("step") != step:
            raise Damaged(f"{MANIFEST} is of another version or another step")
        files = manifest.get("files")
        if not isinstance(files, dict) or STATE not in files:
            raise Damaged(f"{MANIFEST} lists no files")
        for name, about in files.items():
            if Path(name).name != name or not isinstance(about, dict):
                raise Damaged(f"{MANIFEST} lists {name!r}")
            file = path / name
            if file.is_symlink() or not file.is_file():
                raise Damaged(f"{name} is missing")
            if file.stat().st_size != about.get("bytes"):
                raise Damaged(
                    f"{name} has {file.stat().st_size} of {about.get('bytes')} bytes: torn"
                )
            if sha256(file) != about.get("sha256"):
                raise Damaged(f"{name} is not what was written (its sha256 differs)")
        state = _read_object(path / STATE)
        stems = [name.removesuffix(".safetensors") for name in files if name != STATE]
        try:
            tensors = {stem: _read_tensors(path / f"{stem}.safetensors") for stem in stems}
        except (OSError, SafetensorError) as error:
            raise Damaged(str(error)) from error
        return Checkpoint(step, state, tensors)

    def steps(self) -> list[int]:
        """Of all whole checkpoints, the newest first."""
        if self.folder.is_symlink() or not self.folder.is_dir():
            return []
        found = [NAME.fullmatch(path.name) for path in self.folder.iterdir() if path.is_dir()]
        steps = [int(name[1]) for name in found if name]
        return sorted((s for s in steps if (self.path(s) / MANIFEST).exists()), reverse=True)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"

    def clean(self) -> None:
        """Remove what an interrupted `write` left."""
        if self.folder.is_dir() and not self.folder.is_symlink():
            for path in self.folder.glob("step-*.partial"):
                shutil.rmtree(path, ignore_errors=True)

    def remove(self) -> None:
        """Remove all checkpoints, and the folder if nothing else is in it."""
        self.clean()
        for step in self.steps():
            _discard(self.path(step))
        if self.folder.is_dir() and not self.folder.is_symlink() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _check_readable(self, path: Path, written: Mapping[str, list[str]]) -> None:
        """Raise OSError unless a checkpoint just written can be opened again."""
        try:
            for stem, names in written.items():
                with safe_open(path / f"{stem}.safetensors", framework="pt") as file:
                    if sorted(file.keys()) != sorted(names):
                        raise OSError(f"{path}: {stem}.safetensors has other tensors than written")
            if _read_object(path / MANIFEST).get("format") != FORMAT:
                raise OSError(f"{path}: {MANIFEST} is not what was written")
        except (Damaged, SafetensorError) as error:
            raise OSError(f"{path}: {error}") from error


def _discard(path: Path) -> None:
    """Remove a checkpoint's files, and its folder unless something else is in it."""
    (path / MANIFEST).unlink(missing_ok=True)  # first: without it the rest is no checkpoint
    for file in path.iterdir():
        if file.name == STATE or file.suffix == ".safetensors":
            file.unlink()
    with contextlib.suppress(OSError):
        path.rmdir()


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise Damaged(f"{path.name}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path.name} is not JSON") from error
    if not isinstance(content, dict):
        raise Damaged(f"{path.name} is not an object")
    return content


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}
