"""What a data set's README.md says of its files: the `configs` of its YAML, as on the hub."""

from __future__ import annotations

import difflib
import glob
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from data.errors import NO_INPUT, InputError
from data.readers import is_data


class Config(NamedTuple):
    """One configuration: its folder, and the patterns of each split's files (none: by name)."""

    name: str
    folder: Path
    patterns: dict[str, list[str]]


def read_configs(folder: Path) -> tuple[list[Config], str | None, str]:
    """(the configurations, the name of the default one, a note) of the folder's README.md."""
    file = folder / "README.md"
    try:
        text = file.read_text("utf-8-sig") if file.is_file() else ""
    except (OSError, UnicodeDecodeError):
        return [], None, ""
    lines = text.split("\n")
    ends = [i for i, line in enumerate(lines) if line.rstrip() == "---"]
    if len(ends) < 2 or ends[0] != 0:
        return [], None, ""
    try:
        card = yaml.safe_load("\n".join(lines[1 : ends[1]]))
    except (yaml.YAMLError, ValueError, RecursionError):
        return [], None, f"{folder / 'README.md'}: not YAML, so no configuration is taken from it"
    listed = card.get("configs") if isinstance(card, dict) else None
    if not isinstance(listed, list):
        return [], None, ""
    configs = [_config(folder, item) for item in listed]
    defaults = [c.name for c, item in zip(configs, listed, strict=True) if item.get("default")]
    defaults = defaults or [c.name for c in configs if c.name == "default" or len(configs) == 1]
    return configs, defaults[0] if len(defaults) == 1 else None, ""


def _config(folder: Path, item: Any) -> Config:
    if not isinstance(item, dict) or not isinstance(item.get("config_name"), (str, int, float)):
        raise InputError(f"{folder / 'README.md'}: an entry of configs has no name; correct it")
    name = str(item["config_name"])
    files = item.get("data_files")
    patterns: dict[str, list[str]] = {}
    entries = files if isinstance(files, list) else [] if files is None else [files]
    if isinstance(files, dict):  # {split: path}
        entries = [{"split": split, "path": path} for split, path in files.items()]
    for entry in entries:
        split, path = "train", entry
        if isinstance(entry, dict):
            split, path = str(entry.get("split", "train")), entry.get("path")
        paths = path if isinstance(path, list) else [path]
        if not all(isinstance(one, str) for one in paths) or not paths:
            raise InputError(
                f"{folder / 'README.md'}: config {name}: data_files is neither a path nor"
                " {split, path}; correct it"
            )
        patterns.setdefault(split, []).extend(paths)
    inside = str(item.get("data_dir") or "")
    for path in (inside, *(path for paths in patterns.values() for path in paths)):
        if leads_out(path):
            raise InputError(
                f"{folder / 'README.md'}: config {name}: {path} is not below it; correct it"
            )
    return Config(name, folder / inside, patterns)


def pick(folder: Path, configs: list[Config], default: str | None, asked: str | None) -> Config:
    """The configuration asked for, or the default one."""
    names = [config.name for config in configs]
    wanted = asked or default
    if wanted is None:
        raise InputError(
            f"{folder}: several configurations ({', '.join(names)}); give one,"
            f" as {folder}:{names[0]}",
            NO_INPUT,
        )
    if wanted not in names:
        close = difflib.get_close_matches(wanted, names, n=1)
        guess = f"did you mean {close[0]}? " if close else ""
        raise InputError(
            f"{folder}: no configuration {wanted!r}; {guess}it has {', '.join(names)}:"
            f" give {folder}:{close[0] if close else names[0]}",
            NO_INPUT,
        )
    return configs[names.index(wanted)]


def matching(config: Config, split: str) -> tuple[list[Path], list[str]]:
    """The files of one split, pattern by pattern, each once; and the patterns without a file."""
    found: dict[Path, None] = {}
    absent = []
    for pattern in config.patterns[split]:
        local = "://" not in pattern
        names = glob.glob(pattern, root_dir=config.folder, recursive=True) if local else []
        paths = [config.folder / name for name in sorted(names)]
        # a name that is no pattern is meant, whatever it is
        named = not glob.has_magic(pattern)
        files = [path for path in paths if path.is_file() and (named or is_data(path))]
        found |= dict.fromkeys(files)
        if not files:
            absent.append(pattern)
    return list(found), absent


def leads_out(path: str) -> bool:
    """Whether a path that a downloaded file gives could be one outside its directory."""
    return Path(path).is_absolute() or ".." in Path(path).parts
