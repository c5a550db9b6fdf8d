"""Which flags there are: fields of the config classes, their defaults, the sentence under each.

They are read from the source of the files. Nothing of this package imports torch, so that `--help`
and a typo answer at once.
"""

from __future__ import annotations

import ast
import re
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Flag:
    name: str
    type: Any
    default: Any
    help: str


def loss_files() -> dict[str, Path]:
    """The losses there are: every file of losses/ that ends in a `LOSS = ...` record."""
    files = sorted((ROOT / "losses").glob("*.py"))
    return {f.stem: f for f in files if re.search(r"^LOSS = ", f.read_text("utf-8"), re.M)}


def loss_flags(loss: str) -> list[Flag]:
    """The flags of a loss: those of the class that its LOSS record names as `config`."""
    path = loss_files()[loss]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.keyword) and node.arg == "config":
            return read_flags(path, ast.unparse(node.value))
    raise TypeError(f"{path}: no Loss(config=...) names the class of its flags")


def read_flags(path: Path, class_name: str) -> list[Flag]:
    """The fields of a config class and of its base classes, read without running the file.

    Raises:
        TypeError: the class, a base class or a field cannot be read so; it would lose flags.
    """
    module = ast.parse(path.read_text("utf-8"))
    config = next((n for n in module.body if getattr(n, "name", None) == class_name), None)
    if not isinstance(config, ast.ClassDef):
        raise TypeError(f"{path}: no class {class_name}")
    flags: dict[str, Flag] = {}  # an overridden field keeps its place, as in a dataclass
    for base in reversed(config.bases):
        flags |= {flag.name: flag for flag in read_flags(*_base_class(base, module, path))}
    aliases = {
        target.id: node.value
        for node in module.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node, below in zip(config.body, [*config.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            try:
                text = ast.literal_eval(below.value) if isinstance(below, ast.Expr) else ""
                default = ast.literal_eval(node.value) if node.value else MISSING
                flag_type = _type(node.annotation, aliases)
            except (ValueError, KeyError) as error:
                where = f"{path}:{node.lineno}"
                raise TypeError(f"{where}: {ast.unparse(node)} cannot be a flag") from error
            flags[node.target.id] = Flag(node.target.id, flag_type, default, text)
    return list(flags.values())


def _base_class(base: ast.expr, module: ast.Module, path: Path) -> tuple[Path, str]:
    """The file and the name of a base class: of the same file, or imported from this project."""
    name = ast.unparse(base)
    if any(isinstance(n, ast.ClassDef) and n.name == name for n in module.body):
        return path, name
    for node in module.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    folder = path.parents[node.level - 1] if node.level else ROOT
                    file = folder.joinpath(*(node.module or "").split(".")).with_suffix(".py")
                    if file.exists():
                        return file, alias.name
    raise TypeError(f"{path}: the base class {name} is neither here nor imported from this project")


def _type(node: ast.expr, aliases: dict[str, ast.expr]) -> Any:
    """The type that an annotation names: int, float, str, bool, None, Literal[...], and unions."""
    if isinstance(node, ast.Name) and node.id in aliases:
        return _type(aliases[node.id], aliases)
    if isinstance(node, ast.Name):
        return {"int": int, "float": float, "str": str, "bool": bool}[node.id]
    if isinstance(node, ast.Constant) and node.value is None:
        return None
    if isinstance(node, ast.BinOp):
        return _type(node.left, aliases) | _type(node.right, aliases)
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal":
        return Literal[ast.literal_eval(node.slice)]
    raise ValueError(f"a flag cannot have the type {ast.unparse(node)}")
