"""The YAML file that --config names: one mapping of flags to values.

A value is taken as it is written, for the flag to read: YAML's own types would make 8 of 010, 90 of
1:30, text of 1e-5, and false of `mixed_precision: no`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import yaml

from data.errors import USAGE, InputError
from data.files import read_small

SCALARS = ("str", "int", "float", "timestamp", "value")
TRUE = ("true", "yes", "on")


class Value(NamedTuple):
    """What is written for a flag."""

    text: str
    kind: str  # "bool" for true, false and their like, without quotes; else "text"

    @property
    def is_true(self) -> bool:
        return self.text.lower() in TRUE


def read_config(path: str) -> Mapping[str, Value | None]:
    """The flags of a file, None where it says null: the flag is left open.

    Raises:
        InputError: it cannot be read, is not YAML, no mapping, has a key twice, or something else
            than text, a number, true, false or null as a value.
    """
    who = f"--config {path}"
    text = read_small(Path(os.path.expanduser(path)), who, "save it as UTF-8")
    try:
        # Nodes, not values: no alias is followed, no number made.
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise InputError(f"{who}: {' '.join(str(error).split())}", USAGE) from error
    except RecursionError as error:
        raise InputError(f"{who}: brackets too deep; give a mapping of flags", USAGE) from error
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise InputError(f"{who}: not a mapping of flags to values", USAGE)
    found: dict[str, Value | None] = {}
    for key, value in root.value:
        where = f"{who}:{key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            raise InputError(f"{where}: a key that is no flag's name", USAGE)
        name = key.value.replace("-", "_")
        if name in found:
            raise InputError(f"{where}: --{name} is given twice; give it once", USAGE)
        found[name] = _value(value, f"{where}: {name}")
    return found


def _value(node: yaml.Node, where: str) -> Value | None:
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if isinstance(node, yaml.ScalarNode) and kind in (*SCALARS, "bool", "null"):
        if kind == "null":
            return None
        return Value(node.value, "bool" if kind == "bool" else "text")
    if isinstance(node, yaml.SequenceNode):
        raise InputError(f"{where}: a list; several are one value with commas: a,b", USAGE)
    raise InputError(f"{where}: not text, a number, true, false or null", USAGE)
