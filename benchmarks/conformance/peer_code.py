"""How an adapter runs a peer's own lines, also where they stand inside a Trainer method.

Nothing here knows a formula. A peer's function is imported where it can be; a function whose module
needs GPUs or a cluster to import, and statements in the middle of a method, are cut out of the
installed source by name and compiled as they stand. A name or a line that is not found is an error,
never a skipped case: a new version of the peer then needs a new look.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def module(name: str) -> Any:
    """A peer's module, imported when first used; typed Any, as peers are no dependency of ours."""
    return importlib.import_module(name)


def versions(pinned: str, *beside: str) -> dict[str, str]:
    """Versions of a peer, "name==version", and of what it runs on.

    Raises:
        ImportError: that peer is not here, or in another version than the adapter was written for.
    """
    name, wanted = pinned.split("==")
    found = {package: metadata.version(package) for package in (name, *beside)}
    if found[name].partition("+")[0] != wanted:
        raise ImportError(f"{pinned}, and {found[name]} is; see peers.sh")
    return found


def source_of(package: str, path: str) -> Path:
    """The installed file `path` of `package`, found without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"{package} is not installed here")
    return Path(spec.submodule_search_locations[0]) / path


def functions(file: Path, names: Sequence[str], given: dict[str, Any]) -> SimpleNamespace:
    """The named functions, methods and classes of `file`, with `given` as their globals."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    found = [n for n in ast.walk(_tree(file)) if isinstance(n, kinds) and n.name in names]
    missing = set(names) - {node.name for node in found}
    if missing:
        raise LookupError(f"{file.name} has no {', '.join(sorted(missing))}")
    scope = {"__name__": file.stem, **given}
    exec(_compile(found, file), scope)
    return SimpleNamespace(**{name: scope[name] for name in names})


def run_block(file: Path, first: str, last: str, given: dict[str, Any]) -> dict[str, Any]:
    """Runs the statements of `file` from the one that begins with `first` to the one with `last`.

    Both stand in one body (of a function, loop or branch). `given` holds the names that they read;
    returned with what they assigned.
    """
    scope = dict(given)
    exec(_block(file, first, last), scope)
    return scope


@lru_cache
def _block(file: Path, first: str, last: str) -> CodeType:
    for node in ast.walk(_tree(file)):
        for field in ("body", "orelse"):
            body: Any = getattr(node, field, None)
            lines = [ast.unparse(one) for one in body] if isinstance(body, list) else []
            starts = [i for i, line in enumerate(lines) if line.startswith(first)]
            if not starts:
                continue
            ends = [i for i in range(starts[0], len(lines)) if lines[i].startswith(last)]
            if ends:
                return _compile(body[starts[0] : ends[0] + 1], file)
    raise LookupError(f"{file.name} has no block from {first!r} to {last!r}")


@lru_cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def _compile(body: list[Any], file: Path) -> CodeType:
    return compile(ast.Module(body=body, type_ignores=[]), str(file), "exec")


class Loose(SimpleNamespace):
    """A stand-in for a Trainer: it has what is given, and its metrics accept everything."""

    def __init__(self, **given: Any) -> None:
        accelerator = SimpleNamespace(
            device="cpu",
            num_processes=1,
            parallelism_config=None,
            gather=lambda x: x,
            gather_for_metrics=lambda x: x,
        )
        super().__init__(accelerator=accelerator, **given)


def rows(loss: Callable[..., Tensor], *columns: Tensor | None) -> Tensor:
    """`loss` of one row at a time: what a peer averages over a batch is one value for a batch of 1.

    Columns are (B, ...) or None; `loss` gets slices (1, ...) and returns a scalar. Returns (B,).
    """
    torch = module("torch")
    count = len(next(column for column in columns if column is not None))
    cut = ([c if c is None else c[i : i + 1] for c in columns] for i in range(count))
    stacked: Tensor = torch.stack([loss(*row).reshape(()) for row in cut])
    return stacked


def tokens(loss: Callable[..., Tensor], *columns: Tensor, only: Tensor | None = None) -> Tensor:
    """As `rows`, one token (1, 1) at a time; columns and the result are (B, T).

    `only` (B, T) names the tokens to ask for, where the peer never sees the others; they are 0.
    """
    flat = [column.reshape(-1, 1) for column in columns]
    if only is None:
        return rows(loss, *flat).reshape(columns[0].shape)
    kept = only.reshape(-1)
    every = flat[0].reshape(-1).masked_fill(kept | ~kept, 0)  # zeros that a gradient reaches
    if bool(kept.any()):
        every = every.masked_scatter(kept, rows(loss, *(column[kept] for column in flat)))
    return every.reshape(only.shape)


def zero_padding(mask: Tensor, *columns: Tensor) -> list[Tensor]:
    """Columns with 0 under a False mask, for peers whose callers zero the padding first."""
    return [column.masked_fill(~mask, 0) for column in columns]


def right_padded(mask: Tensor) -> Tensor:
    """The number of tokens of every row, or NotImplementedError where a mask has a gap."""
    lengths = mask.sum(dim=1)
    torch = module("torch")
    if not bool((mask == (torch.arange(mask.shape[1])[None, :] < lengths[:, None])).all()):
        raise NotImplementedError("takes right-padded responses only")
    return lengths
