"""Write the vectors: the papers' formulas at 80 digits, as JSON that needs no framework to read.

    python -m benchmarks.conformance.generate            # vectors/*.json, bit for bit the same
    python -m benchmarks.conformance.generate --check     # say whether they are what it would write

README.md says what each field means. Nothing in here imports torch, `losses/` or the tests.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from mpmath import mp, mpf  # type: ignore[import-untyped]

from .cases import all_cases
from .cases.base import Case
from .formulas.answer import FAMILIES, Answer, answer
from .formulas.arithmetic import PRECISION, Rounded

VECTORS = Path(__file__).parent / "vectors"
DIGITS = 32
ROOM = 4  # epsilons of scale between a case and a kink: eight times what good rounding needs
EPSILONS = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7}


def vector(case: Case) -> dict[str, Any]:
    """A case and its answer, ready for JSON."""
    with mp.workdps(PRECISION):
        return _vector(case, answer(case))


def _vector(case: Case, found: Answer) -> dict[str, Any]:
    outputs = {
        name: {"expected": _digits(out), "scale": _scales(out), "cotangent": found.cotangents[name]}
        for name, out in found.outputs.items()
    }
    dtypes = _dtypes(case, found)
    optional = FAMILIES[case.family].optional
    gradients = {
        name: {"expected": _digits(grad), "scale": _scales(grad)}
        for name, grad in found.gradients.items()
        # a long row's constants would fill a megabyte with what short rows say already
        if not (case.long and name in optional and case.family in ("policy", "value"))
    }
    return {
        "id": f"{case.family}/{case.name}",
        "story": case.story,
        "cites": list(case.cites),
        "dtypes": dtypes or list(case.dtypes),
        "terms": found.terms,
        "options": case.options,
        "inputs": {name: _plain(x) for name, x in case.inputs.items()},
        "outputs": outputs,
        "gradients": gradients if dtypes and not case.values_only else {},
    }


def vectors(seed: int = 0, long: bool = True) -> dict[str, dict[str, Any]]:
    """Every family's file: what stands in vectors/ for seed 0."""
    files: dict[str, dict[str, Any]] = {}
    for case in all_cases(seed, long):
        family = FAMILIES[case.family]
        head = {
            "family": case.family,
            "function": family.function,
            "paper": family.paper,
            "gradient_optional": list(family.optional),
            "cases": [],
        }
        files.setdefault(case.family, head)["cases"].append(vector(case))
    return files


def text(file: dict[str, Any]) -> str:
    """JSON with one case a line."""
    head = {k: v for k, v in file.items() if k != "cases"}
    lines = ",\n".join(
        json.dumps(case, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        for case in file["cases"]
    )
    return json.dumps(head, ensure_ascii=False)[:-1] + f', "cases": [\n{lines}\n]}}\n'


def _dtypes(case: Case, found: Answer) -> list[str]:
    """Those of the case that cannot round across a kink: none for a case that stands on one."""
    room = math.inf if case.far else found.nearest_kink
    return [name for name in case.dtypes if room > ROOM * EPSILONS[name]]


def _plain(x: Any) -> Any:
    """Numbers as JSON has them; nan and inf, which it has not, as strings."""
    if isinstance(x, list):
        return [_plain(a) for a in x]
    return x if isinstance(x, (bool, int)) or math.isfinite(x) else str(x)


def _digits(x: Any) -> Any:
    if isinstance(x, list):
        return [_digits(a) for a in x]
    return _number(x.v)


def _number(v: mpf) -> str:
    written = mp.nstr(v, DIGITS, strip_zeros=True)
    return str(written).removesuffix(".0").replace(".0e", "e")


def _scales(x: Any) -> Any:
    if isinstance(x, list):
        return [_scales(a) for a in x]
    assert isinstance(x, Rounded)
    s = float(mp.nstr(max(x.s, abs(x.v)), 3))  # an exact answer may still be rounded once
    return int(s) if s == int(s) and s < 1e4 else s


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.conformance.generate",
        description="Write benchmarks/conformance/vectors/*.json.",
    )
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if they differ")
    options = parser.parse_args(arguments)
    differ = []
    for name, file in vectors().items():
        path = VECTORS / f"{name}.json"
        if options.check:
            old = path.read_text("utf-8") if path.exists() else ""
            differ += [path.name] if old != text(file) else []
        else:
            path.write_text(text(file), "utf-8")
            print(f"{path.name}: {len(file['cases'])} cases")
    if differ:
        print("not what this program writes: " + ", ".join(differ), file=sys.stderr)
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
