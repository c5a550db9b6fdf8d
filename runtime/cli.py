"""The command line, in two passes: which loss, then that loss's flags and no other's.

Nothing here imports torch, so that `--help` and a typo answer at once. A loss's flags are read from
the source of its file: the fields of its config class, their defaults, and the sentence under each.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import io
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro
import yaml

from data.errors import NO_INPUT, USAGE, InputError
from runtime.config import Args, TrainConfig, args_of_run

ROOT = Path(__file__).resolve().parent.parent

PLAIN_ERRORS = {  # tyro's words, and how a user reads them
    r"Error parsing (--\w+): no type .* from \[('.*?')\]\..*": r"\1: \2 is not valid here",
    r"Error parsing (--\w+): could not convert string to float: (.*)": r"\1: \2 is not a number",
    r"Error parsing (--\w+): invalid literal for int.*: (.*)": r"\1: \2 is not a whole number",
    r"invalid choice '(bf16|bfloat16|fp16|float16|half)' for argument '(--dtype)'.*": (
        r"\2 \1: updates smaller than half a unit in the last place of a weight would be lost;"
        " give --mixed_precision bf16, which keeps weights and optimizer in float32"
    ),
    r"invalid choice (.*) for argument '(--\w+)'. Expected .*\((.*)\).*": r"\2: \1 is none of \3",
    r"Missing value for argument '(--\w+)'.*": r"\1: its value is missing",
}


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


def parse_args(argv: Sequence[str]) -> Args:
    """Turn the command line (and the YAML file it names) into Args.

    Raises:
        InputError: with the one line to print and exit code 2.
        SystemExit: after `--help`.
    """
    given = list(argv)
    if wrong := [word for word in given if re.search("[\ud800-\udfff]", word)]:
        reason = "not UTF-8; rename it, or set PYTHONUTF8=1"
        raise InputError(f"{ascii(wrong[0])}: {reason}", USAGE)
    _refuse_repeats(_names(given))
    if (folder := _peek(given, "export")) is not None:
        if len(given) > 1 + ("--export" in given):
            raise InputError("--export RUN takes no other flag: they are in config.json", USAGE)
        return args_of_run(Path(folder))
    from_file = _read_config(_peek(given, "config"))
    loss = _peek(given, "loss") or from_file.get("loss")
    names = list(loss_files())
    if loss is None and not {"-h", "--help"} & set(given):
        like = difflib.get_close_matches("--loss", [arg.split("=")[0] for arg in given], n=1)
        typo = f"; you wrote {like[0]}" if like and like[0] != "--loss" else ""
        raise InputError(f"--loss is missing: one of {', '.join(names)}{typo}", USAGE)
    loss = None if loss is None else str(loss)
    if loss is not None and loss not in names:
        raise InputError(f"--loss {loss}: {_suggest(loss, names)}", USAGE)

    own = loss_flags(loss) if loss else []
    shared = read_flags(ROOT / "runtime" / "config.py", "TrainConfig")
    known = {flag.name: flag for flag in [*own, *shared]}
    for key, value in from_file.items():
        where = f"{_peek(given, 'config')}: "
        if key not in known:
            raise InputError(f"{where}unknown key {key}: {_not_a_flag(key, loss, known)}", USAGE)
        if isinstance(value, bool) and known[key].type is not bool:
            reason = f"YAML reads this as {str(value).lower()}; put it in quotes"
            raise InputError(f"{where}{key}: {reason}", USAGE)
    argv = [*_as_argv(from_file), *given]
    values, unknown = _tyro([*own, *shared], argv, loss, names)
    if unknown:
        name = unknown[0].lstrip("-").split("=")[0].replace("-", "_")
        if not unknown[0].startswith("-"):
            raise InputError(f"unexpected argument {unknown[0]!r}; flags start with --", USAGE)
        raise InputError(f"unknown flag --{name}: {_not_a_flag(name, loss, known)}", USAGE)

    try:
        config = TrainConfig(**{flag.name: getattr(values, flag.name) for flag in shared})
    except ValueError as error:
        raise InputError(str(error), USAGE) from error
    typed = {name if name in known else name.removeprefix("no_") for name in _names(given)}
    origin = dict.fromkeys(from_file, "config file") | dict.fromkeys(typed, "command line")
    return Args(config, {flag.name: getattr(values, flag.name) for flag in own}, origin)


def parse_or_exit(argv: Sequence[str]) -> Args:
    """`parse_args`, with what is wrong as one line on stderr and the exit code."""
    try:
        return parse_args(argv)
    except InputError as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _names(argv: Sequence[str]) -> list[str]:
    """The flags on a command line, by the names that their fields have."""
    return [a[2:].split("=")[0].replace("-", "_") for a in argv if a.startswith("--")]


def _refuse_repeats(names: Iterable[str], where: str = "") -> None:
    """Raise InputError for what is given twice, be it once as `--no_...`: one would be ignored."""
    times = Counter(name.removeprefix("no_") for name in names)
    for name, count in times.items():
        if count > 1:
            several = "; several data sets are one value: a,b" if name == "data" else ""
            twice = "twice" if count == 2 else f"{count} times"
            raise InputError(f"{where}--{name} is given {twice}; give it once{several}", USAGE)


def _peek(argv: list[str], name: str) -> str | None:
    """The value of --name in argv, before it is parsed."""
    for i, arg in enumerate(argv):
        if arg == f"--{name}" and i + 1 < len(argv):
            return argv[i + 1]
        if arg.startswith(f"--{name}="):
            return arg.split("=", 1)[1]
    return None


def _read_config(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        text = Path(path).read_text("utf-8")
        values = yaml.safe_load(text) or {}
        keys = getattr(yaml.compose(text, Loader=yaml.SafeLoader), "value", [])
    except OSError as error:
        raise InputError(f"--config {path}: {error.strerror}", NO_INPUT) from error
    except UnicodeDecodeError as error:
        raise InputError(f"--config {path}: not UTF-8; save it as UTF-8", USAGE) from error
    except yaml.YAMLError as error:
        raise InputError(f"--config {path}: {' '.join(str(error).split())}", USAGE) from error
    if not isinstance(values, dict):
        raise InputError(f"--config {path}: not a mapping of flags to values", USAGE)
    _refuse_repeats((key.value.replace("-", "_") for key, _ in keys), f"--config {path}: ")
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def _as_argv(values: dict[str, Any]) -> Iterator[str]:
    """YAML values as flags, so that both are checked by the same rules."""
    for key, value in values.items():
        if isinstance(value, bool):
            yield f"--{key}" if value else f"--no-{key}"
        elif value is not None:
            yield from (f"--{key}", str(value))


def _tyro(
    flags: list[Flag], argv: list[str], loss: str | None, names: list[str]
) -> tuple[Any, list[str]]:
    """Parse by one flat dataclass made of all the flags; its errors become one line each."""
    members = []
    for flag in flags:
        flag_type = Literal[tuple(names)] if flag.name == "loss" else flag.type
        if flag.default is None:  # "{None}|INT (default: None)" would help nobody
            metavar = next(t.__name__.upper() for t in get_args(flag_type) if t is not type(None))
            about = tyro.conf.arg(help=flag.help, help_behavior_hint="", metavar=metavar)
        else:
            about = tyro.conf.arg(help=flag.help)
        flag_type = Annotated[flag_type, about]
        default = {} if flag.default is MISSING else {"default": flag.default}
        members.append((flag.name, flag_type, field(kw_only=True, **default)))
    title = f"Train with {loss}." if loss else "Add --loss NAME to see that loss's own flags too."
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            parsed: tuple[Any, list[str]] = tyro.cli(
                make_dataclass("Flags", members),
                prog="train.py",
                description=title,
                args=argv,
                return_unknown_args=True,
                use_underscores=True,
            )
    except SystemExit as end:
        if end.code in (0, None):
            raise
        # tyro draws a box; its first paragraph is the reason.
        lines = [line.strip("│ ") for line in stderr.getvalue().splitlines() if line[:1] == "│"]
        reason = " ".join(" ".join(lines).split("───")[0].split())
        for pattern, plain in PLAIN_ERRORS.items():
            reason = re.sub(f"^{pattern}", plain, reason)
        raise InputError(reason or "the command line is not valid", USAGE) from None
    return parsed


def _not_a_flag(name: str, loss: str | None, known: Iterable[str]) -> str:
    """Why `name` is not a flag here: it is another loss's, or a typo."""
    owners = [
        other
        for other in loss_files()
        if other != loss and name in {flag.name for flag in loss_flags(other)}
    ]
    if owners:
        return f"it belongs to --loss {', '.join(owners)}, not to --loss {loss}"
    return _suggest(name, known, "--")


def _suggest(name: str, known: Iterable[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    if close:
        return f"did you mean {prefix}{close[0]}?"
    return "python train.py --help lists them" if prefix else f"choose from {', '.join(known)}"
