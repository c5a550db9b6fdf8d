"""Hold an implementation of the losses against the vectors, and print a table.

    python -m benchmarks.conformance --implementation ours
    python -m benchmarks.conformance --implementation path/to/mine.py --output mine.json

Exit status: 0 all that was judged passed, 1 something differed, 2 there is nothing to run or judge.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

IMPLEMENTATIONS = Path(__file__).parent / "implementations"
MODULE = "__implementation__"  # the name of a file's module, which no package has


class NothingToRunError(Exception):
    """One line for the person who asked."""


def implementation(name: str) -> tuple[str, Any]:
    """A module of `implementations/` by its name, or any Python file by its path.

    A file may import its neighbours; what is installed or in this checkout comes before them.
    """
    names = sorted(p.stem for p in IMPLEMENTATIONS.glob("[a-z]*.py"))
    try:
        if name in names:
            return name, importlib.import_module(f"{__package__}.implementations.{name}")
        path = Path(name)
        if path.suffix != ".py":
            raise NothingToRunError(
                f"{name} is no implementation; take a Python file or one of {', '.join(names)}"
            )
        if not path.is_file():
            raise NothingToRunError(f"{name}: no such file")
        spec = importlib.util.spec_from_file_location(MODULE, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[MODULE] = module  # a dataclass of the file looks itself up there
        sys.path.append(str(path.resolve().parent))
        spec.loader.exec_module(module)
    except ImportError as error:
        raise NothingToRunError(f"{name} needs what is not installed here: {error}") from error
    except NothingToRunError:
        raise
    except SystemExit as error:
        raise NothingToRunError(
            f"{name}: calls sys.exit({error.code!r}) when it is imported"
        ) from error
    except Exception as error:
        raise NothingToRunError(f"{name}: {type(error).__name__}: {error}") from error
    return path.stem, module


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conformance", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--implementation",
        required=True,
        metavar="NAME|FILE.py",
        help="a name of benchmarks/conformance/implementations, or a file with such functions",
    )
    parser.add_argument("--family", nargs="+", default=[], help="only these (default: all)")
    parser.add_argument(
        "--dtype",
        nargs="+",
        default=["float64", "float32", "bfloat16"],
        choices=["float64", "float32", "bfloat16"],
    )
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the results there")
    options = parser.parse_args(arguments)

    from . import load, runner, table  # after --help, which needs no NumPy

    try:
        unknown = set(options.family) - set(load.families())
        if unknown:
            known = ", ".join(load.families())
            raise NothingToRunError(f"no family {', '.join(sorted(unknown))}; take some of {known}")
        name, module = implementation(options.implementation)
        functions = load.functions()
        if not any(hasattr(module, function) for function in functions):
            raise NothingToRunError(f"{name} has none of {', '.join(functions)}")
        try:
            results = runner.run(module, load.load(options.family), options.dtype)
        except ValueError as error:
            raise NothingToRunError(f"{name}: {error}") from error
        if not results:
            dtypes = ", ".join(options.dtype)
            raise NothingToRunError(f"{name}: nothing was judged: no case is asked in {dtypes}")
        print("\n".join(table.lines(name, results)))
        if all(r.status == "skipped" for r in results):
            cases = len({r.case.id for r in results})
            raise NothingToRunError(
                f"{name}: nothing was judged: each of the {cases} cases was skipped"
            )
        if options.output:
            report = table.report(name, module, results)
            try:
                options.output.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
            except OSError as error:
                raise NothingToRunError(f"cannot write {options.output}: {error}") from error
    except NothingToRunError as error:
        print(error, file=sys.stderr)
        return 2
    return 1 if any(r.status == "failed" for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())
