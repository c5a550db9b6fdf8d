"""The command line, in two passes: which loss, then that loss's flags and no other's."""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro

from data.errors import USAGE, InputError
from runtime.cli.config_file import Value, read_config
from runtime.cli.flags import ROOT, Flag, loss_files, loss_flags, read_flags
from runtime.config import Args, TrainConfig, args_of_run

NARROWEST = 60  # columns

PLAIN_ERRORS = {  # tyro's words, and how a user reads them
    r"Error parsing (--\w+): no type .* from \[('.*?')\]\..*": r"\1: \2 is not valid here",
    r"Error parsing (--\w+): could not convert string to float: (.*)": r"\1: \2 is not a number",
    r"Error parsing (--\w+): invalid literal for int.*: (.*)": r"\1: \2 is not a whole number",
    r"Error parsing (--\w+): Exceeds the limit.*": r"\1: a number of too many digits",
    r"invalid choice '(bf16|bfloat16|fp16|float16|half)' for argument '(--dtype)'.*": (
        r"\2 \1: updates smaller than half a unit in the last place of a weight would be lost;"
        " give --mixed_precision bf16, which keeps weights and optimizer in float32"
    ),
    r"invalid choice (.*) for argument '(--\w+)'. Expected .*\((.*)\).*": r"\2: \1 is none of \3",
    r"Missing value for argument '(--\w+)'.*": r"\1: its value is missing",
}


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
    config_path = _peek(given, "config")
    from_file = read_config(config_path) if config_path is not None else {}
    in_file = from_file.get("loss")
    loss = _peek(given, "loss") or (in_file and in_file.text)
    names = list(loss_files())
    if loss is None and not {"-h", "--help"} & set(given):
        like = difflib.get_close_matches("--loss", [arg.split("=")[0] for arg in given], n=1)
        typo = f"; you wrote {like[0]}" if like and like[0] != "--loss" else ""
        raise InputError(f"--loss is missing: one of {', '.join(names)}{typo}", USAGE)
    if loss is not None and loss not in names:
        raise InputError(f"--loss {loss}: {_suggest(loss, names)}", USAGE)

    own = loss_flags(loss) if loss else []
    shared = read_flags(ROOT / "runtime" / "config.py", "TrainConfig")
    known = {flag.name: flag for flag in [*own, *shared]}
    for key, value in from_file.items():
        where = f"--config {config_path}: "
        if key not in known:
            raise InputError(f"{where}unknown key {key}: {_not_a_flag(key, loss, known)}", USAGE)
        if key == "config":
            raise InputError(f"{where}config: a file cannot name another", USAGE)
        if value is not None and known[key].type is bool and value.kind != "bool":
            raise InputError(f"{where}{key}: {value.text!r}; give true or false", USAGE)
    argv = [*_as_argv(from_file, known), *given]
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
    origin = {
        name: "config file" for name, value in from_file.items() if value is not None
    } | dict.fromkeys(typed, "command line")
    return Args(config, {flag.name: getattr(values, flag.name) for flag in own}, origin)


def parse_or_exit(argv: Sequence[str]) -> Args:
    """`parse_args`, with what is wrong as one line on stderr and the exit code."""
    try:
        return parse_args(argv)
    except InputError as error:
        with contextlib.suppress(OSError, ValueError):  # a closed or full stderr
            print(f"train.py: {error}", file=sys.stderr, flush=True)
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


def _as_argv(values: Mapping[str, Value | None], known: Mapping[str, Flag]) -> Iterator[str]:
    """The file's values as flags, so that both are checked by the same rules."""
    for key, value in values.items():
        if value is None:
            continue
        if known[key].type is bool:
            yield f"--{key}" if value.is_true else f"--no-{key}"
        else:
            yield f"--{key}={value.text}"  # one word: the value may begin with --


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
    title += " Threads sleep while they wait, unless OMP_WAIT_POLICY or its like is set."
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr), _wide_enough():
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


@contextlib.contextmanager
def _wide_enough() -> Iterator[None]:
    """Let tyro see no terminal that is too narrow: on 5 columns its help never ends."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(max(NARROWEST, shutil.get_terminal_size().columns))
    try:
        yield
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before


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
