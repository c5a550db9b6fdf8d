"""Tokens of large data, kept between runs: one folder an entry, below Hugging Face's own cache.

An entry's name is a hash of everything that its tokens depend on: the bytes of the data files, the
tokenizer and its chat template, the settings, the code of this package and the versions of the
libraries that tokenise. So an entry never goes stale; one that nothing has used for some weeks is
removed. Its tables are mapped: what a run does not look at takes no memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow
from filelock import FileLock

from data.files import sha256
from data.locations import locate
from data.prepared import DataSettings, Prepared, prepare
from data.row_table import RowTable
from data.sources import open_sources

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEAST_BYTES = 4 << 20  # of data files: less is tokenised in a few seconds
KEPT_DAYS = 30  # since an entry was used last
LIBRARIES = ("transformers", "tokenizers", "jinja2", "pyarrow")
TABLES = ("train", "heldout")


def prepare_cached(settings: DataSettings, tokenizer: PreTrainedTokenizerBase) -> Prepared:
    """`prepare`, or what an earlier run kept of it.

    Of several processes one prepares, and the others wait for it. A cache that cannot be read or
    written ends no run: the lines say so.

    Raises:
        InputError: naming file, line, column and reason.
    """
    files = data_files(settings)
    regular = all(file.is_file() for file in files)  # of a pipe nothing is read, not even a hash
    if not (regular and tokenizer.is_fast and total_bytes(files) >= LEAST_BYTES):
        return prepare(settings, tokenizer)
    try:
        entry = folder() / key_of(settings, tokenizer, files)
        entry.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(f"{entry}.lock").acquire()
    except OSError as error:
        return _told(prepare(settings, tokenizer), f"not kept for the next run: {error}")
    with held:
        return _from_entry(entry, lambda: prepare(settings, tokenizer))


def total_bytes(files: Sequence[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _from_entry(entry: Path, make: Callable[[], Prepared]) -> Prepared:
    """What the entry holds; if it is not there or not whole, made and written."""
    try:
        kept = read(entry)
    except FileNotFoundError:
        why = "kept for the next run in"
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        why = f"made again, those kept are not whole ({error}), in"
    else:
        return _told(kept, f"kept by an earlier run in {entry}")
    made = make()
    try:
        write(entry, made)
        remove_unused(entry.parent)
        return _told(read(entry), f"{why} {entry}")
    except OSError as error:
        return _told(made, f"not kept for the next run: {error}")


def _told(prepared: Prepared, line: str) -> Prepared:
    return replace(prepared, lines=[*prepared.lines, f"tokens: {line}"])


def folder() -> Path:
    """Where the entries are: beside those of `datasets`."""
    from huggingface_hub.constants import HF_HOME

    parent = os.environ.get("HF_DATASETS_CACHE") or Path(HF_HOME, "datasets")
    return Path(parent).expanduser() / "alignment-losses-tokens"


def data_files(settings: DataSettings) -> list[Path]:
    """The files that `prepare` reads; none where a part of them is not of local files."""
    reading, found = settings.reading, list[Path]()
    for data, split in ((settings.data, reading.split), (settings.eval_data, None)):
        if data is None:
            continue
        if any(location.kind == "name" for location in locate(data)):
            return []
        for source in open_sources(data, split=split, pairs=settings.responses == 2):
            found += [
                file for part in (source.train, source.heldout) if part for file in part.files
            ]
    return found


def key_of(
    settings: DataSettings, tokenizer: PreTrainedTokenizerBase, files: Sequence[Path]
) -> str:
    """A hash of everything that the tokens depend on."""
    code = sorted(Path(__file__).parent.glob("*.py"))
    about = {
        "settings": asdict(settings),
        "tokenizer": _digest(tokenizer.backend_tokenizer.to_str().encode()),
        "chat_template": tokenizer.chat_template,
        "special_tokens": tokenizer.special_tokens_map,
        "class": type(tokenizer).__name__,
        "files": [(str(file), sha256(file)) for file in files],
        "code": [(file.name, sha256(file)) for file in code],
        "versions": {name: version(name) for name in LIBRARIES},
    }
    return _digest(json.dumps(about, sort_keys=True, default=_plain).encode())[:32]


def _plain(value: object) -> object:
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def read(entry: Path) -> Prepared:
    """What `write` wrote.

    Raises:
        OSError: there is no entry (FileNotFoundError), or it cannot be read.
        ValueError: it is not what was written.
    """
    about = json.loads((entry / "about.json").read_text("utf-8"))
    tables = []
    for name in TABLES:
        file = entry / f"{name}.arrow"
        if sha256(file) != about["sha256"][name]:
            raise ValueError(f"{file.name} is not what was written")
        tables.append(RowTable.read(file))
    os.utime(entry / "about.json")  # used today
    return Prepared(
        tables[0], tables[1], about["piqa"], frozenset(about["end_tokens"]), about["lines"]
    )


def write(entry: Path, prepared: Prepared) -> None:
    """Write an entry: whole, or not at all."""
    partial = entry.with_name(f"{entry.name}.partial")
    for old in (partial, entry):
        shutil.rmtree(old, ignore_errors=True)
    partial.mkdir()
    about: dict[str, Any] = {
        "lines": list(prepared.lines),
        "end_tokens": sorted(prepared.end_tokens),
        "piqa": list(prepared.piqa),
        "sha256": {},
    }
    for name in TABLES:
        file = partial / f"{name}.arrow"
        getattr(prepared, name).write(file)
        about["sha256"][name] = sha256(file)
    (partial / "about.json").write_text(json.dumps(about), "utf-8")
    os.replace(partial, entry)


def remove_unused(entries: Path) -> None:
    """Remove the entries that nothing has used for KEPT_DAYS, and what a killed run left."""
    for entry in entries.iterdir():
        used = entry / "about.json"
        with_date = used if used.exists() else entry
        if time.time() - with_date.stat().st_mtime > KEPT_DAYS * 86_400:
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
