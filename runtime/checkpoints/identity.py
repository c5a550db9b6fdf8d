"""Whether a run that goes on is still the same run: flags, data, model and tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from data.errors import USAGE, InputError
from data.files import sha256
from models.locate import locate

# Flags that change no weight: how much is computed at once, and what is kept, shown and logged.
FREE = (
    *("output_dir", "overwrite", "resume", "allow_changed", "dry_run", "export", "config"),
    *("save_every", "keep", "eval_every", "lm_eval", "report_to", "max_tokens"),
    *("gradient_checkpointing", "save_dtype"),
)


def model_files(name: str | None) -> str:
    """A hash of a model's weights, configuration and tokenizer as the files have them."""
    folder = Path(locate(name)) if name is not None else Path()
    if name is None or not folder.is_dir():
        return ""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".safetensors", ".json", ".model", ".jinja") and file.is_file():
            digest.update(f"{file.name} {sha256(file)}\n".encode())
    return digest.hexdigest()


def rows_hash(rows: Iterable[object]) -> str:
    """A hash of encoded rows: of the data, the tokenizer and the template that made them."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr(row).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def check_same(
    before: Mapping[str, Any], now: Mapping[str, Any], allowed: Collection[str]
) -> list[str]:
    """Compare two config.json; a line on each difference that is let through.

    Args:
        allowed: names of what may differ (--allow_changed).

    Raises:
        InputError: listing what else differs.
    """
    lines, refused = list[str](), list[str]()
    for key, old, new in sorted(_differences(before, now)):
        line = f"{key} {old} -> {new}"
        (lines if key in allowed or key in ("processes", "versions") else refused).append(line)
    if refused:
        names = ",".join(line.split()[0] for line in refused)
        raise InputError(
            f"this run was begun with other settings: {'; '.join(refused)}. Give them again,"
            f" go on all the same with --allow_changed {names}, or start anew with --overwrite",
            USAGE,
        )
    return lines


def _differences(
    before: Mapping[str, Any], now: Mapping[str, Any]
) -> Iterable[tuple[str, str, str]]:
    for part in ("train", "loss", "identity"):
        old, new = before.get(part, {}), now.get(part, {})
        for key in old.keys() | new.keys():
            if key not in FREE and old.get(key) != new.get(key):
                shown = [str(values.get(key))[:60] for values in (old, new)]
                if part == "identity":
                    shown = [text[:8] for text in shown]
                yield key, *shown
    for key in ("processes", "versions"):
        if before.get(key) != now.get(key):
            yield key, str(before.get(key)), str(now.get(key))
