"""What rejects a patch: a test or a conformance vector, run without the patch and with it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _pytest.runner import runtestprotocol

from benchmarks.conformance.call import with_torch
from benchmarks.conformance.implementations import ours
from benchmarks.conformance.load import Case, load
from benchmarks.conformance.runner import run_one

from .bugs import Patch
from .patch import PatchError, applied

ROOT = Path(__file__).parents[2]
MOST = 12  # numbers of an input that are shown
DTYPE = "float64"


@dataclass(frozen=True)
class Rejection:
    about: str  # what the test or the vector is for
    before: str  # what is wrong without the patch: nothing, or the test proves nothing
    after: str  # what is wrong with it; nothing where the bug goes unnoticed
    crashed: bool = False  # by an error of another kind than a test's own


def rejections(patches: Sequence[Patch]) -> dict[str, Rejection]:
    """By the patches' names; PatchError where a patch, a test or a vector is not there."""
    found = {p.name: _by_vector(p) for p in patches if p.by.startswith("vector ")}
    return found | _by_tests([p for p in patches if p.name not in found])


# ------------------------------------------------------------------------------- by a vector


def _by_vector(patch: Patch) -> Rejection:
    name = patch.by.removeprefix("vector ")
    if name not in _cases():
        raise PatchError(f"{patch.name}: there is no vector {name}")
    case = _cases()[name]
    before = run_one(ours, case, DTYPE).message
    with applied(patch.edits):
        result = run_one(ours, case, DTYPE)
        numbers = "\n".join(_differences(case)) if result.status == "failed" else ""
    given = [f"{name} {_short(x)}" for name, x in case.inputs.items()]
    given += [f"{name} {value}" for name, value in case.options.items()]
    return Rejection(f"{case.story}\n{'  '.join(given)}", before, numbers or result.message)


@cache
def _cases() -> dict[str, Case]:
    return {case.id: case for case in load(long=False)}


def _differences(case: Case) -> Iterator[str]:
    """The first number that is off in every output and gradient."""
    outputs, gradients = with_torch(ours, case, DTYPE)
    tables = dict(zip(case.outputs, outputs, strict=True))
    tables |= {f"gradient of {name}": x for name, x in (gradients or {}).items() if x is not None}
    expected = case.outputs | {f"gradient of {name}": x for name, x in case.gradients.items()}
    for name, got in tables.items():
        right = expected[name].high
        apart = np.abs(got - right) > 1e-9 * np.abs(right)
        wrong = np.argwhere(apart | np.isnan(got)) if got.shape == right.shape else []
        for at in map(tuple, wrong[:1]):
            place = f"[{', '.join(map(str, at))}]" if at else ""
            yield f"{name}{place}: right {right[at]:.9g}, wrong {got[at]:.9g}"


def _short(x: Any) -> str:
    if x.size > MOST:
        return f"({' x '.join(map(str, x.shape))})"
    return np.array2string(x * 1, precision=8, separator=", ", max_line_width=10**6)


# --------------------------------------------------------------------------------- by a test


class _Trial:
    """A pytest plugin: every test as the source stands, then under each patch it must reject."""

    def __init__(self, patches: Sequence[Patch]) -> None:
        self.patches = patches
        self.found: dict[str, Rejection] = {}

    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: object) -> bool:
        about = " ".join((getattr(item, "function", item).__doc__ or "").split())
        before, _ = self._run(item)
        for patch in self.patches:
            if patch.by == item.nodeid:
                with applied(patch.edits):
                    after, crashed = self._run(item)
                self.found[patch.name] = Rejection(about, before, after, crashed)
        return True

    def _run(self, item: pytest.Item) -> tuple[str, bool]:
        """Its message where it does not pass. Fixtures of its module are made anew every time."""
        for report in runtestprotocol(item, log=False, nextitem=None):
            if not report.passed:
                lines = report.longreprtext.splitlines()
                said = [line[1:] for line in lines if line.startswith("E ")]
                return "\n".join(said) or lines[-1], not report.asserted  # type: ignore[attr-defined]
        return "", False

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: object, call: pytest.CallInfo[None]) -> Any:
        report = yield
        ours = (AssertionError, pytest.fail.Exception)
        report.asserted = call.excinfo is not None and issubclass(call.excinfo.type, ours)
        return report


def _by_tests(patches: Sequence[Patch]) -> dict[str, Rejection]:
    if not patches:
        return {}
    trial, told = _Trial(patches), io.StringIO()
    options = ["-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:faulthandler"]
    options += ["-o", "timeout=0", f"--rootdir={ROOT}", "-c", f"{ROOT}/pyproject.toml"]
    nodes = [f"{ROOT}/{node}" for node in dict.fromkeys(patch.by for patch in patches)]
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        pytest.main([*options, *nodes], plugins=[trial])
    missing = [f"{p.name} by {p.by}" for p in patches if p.name not in trial.found]
    if missing:
        raise PatchError(f"no such test: {', '.join(missing)}\n{told.getvalue()}")
    return trial.found
