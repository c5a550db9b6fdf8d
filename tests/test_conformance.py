"""The vectors are what their generator writes, and ours pass every one, however they are drawn."""

import ast
import json
import math
from collections import Counter
from decimal import Decimal

import pytest
import torch
from mpmath import mp, mpf
from runs import ROOT

from benchmarks.conformance.cases import all_cases
from benchmarks.conformance.formulas import arithmetic, units
from benchmarks.conformance.generate import VECTORS, main, text, vector, vectors
from benchmarks.conformance.implementations import ours
from benchmarks.conformance.load import cases_of, families, load
from benchmarks.conformance.runner import run

LONG = {f"{c.family}/{c.name}" for c in all_cases(0) if c.long}
SHORT = load(long=False)
FILES = {name: json.loads((VECTORS / f"{name}.json").read_text("utf-8")) for name in families()}


def flat(x):
    return [leaf for item in x for leaf in flat(item)] if isinstance(x, list) else [x]


def numbers(name):
    """All expected numbers of a family, as they are written."""
    for case in FILES[name]["cases"]:
        for table in (*case["outputs"].values(), *case["gradients"].values()):
            yield from flat(table["expected"])


def failures(results):
    return [f"{r.case.id} in {r.dtype}: {r.message}" for r in results if r.status != "passed"]


def test_there_are_enough():
    assert len(SHORT) >= 150 and len(LONG) == 8
    assert set(families()) == {path.stem for path in VECTORS.glob("*.json")}
    ids = Counter(case["id"] for file in FILES.values() for case in file["cases"])
    assert max(ids.values()) == 1 and ids.keys() - {case.id for case in SHORT} == LONG
    assert sum(path.stat().st_size for path in VECTORS.glob("*.json")) < 3.5e6


def test_the_generator_writes_them():
    """Bit for bit, all but the long rows (test_the_generator_writes_the_files)."""
    for name, made in vectors(long=False).items():
        lines = text(made).splitlines()[1:-1]
        stored = (VECTORS / f"{name}.json").read_text("utf-8").splitlines()[1:-1]
        assert {line.rstrip(",") for line in lines} <= {line.rstrip(",") for line in stored}, name
        assert len(stored) - len(lines) == sum(case.startswith(f"{name}/") for case in LONG)


@pytest.mark.slow
def test_the_generator_writes_the_files(monkeypatch, tmp_path, capsys):
    assert main(["--check"]) == 0
    monkeypatch.setattr("benchmarks.conformance.generate.VECTORS", tmp_path)
    assert main(["--check"]) == 1 and "orpo.json" in capsys.readouterr().err
    assert main([]) == 0
    for name in families():
        assert (tmp_path / f"{name}.json").read_bytes() == (VECTORS / f"{name}.json").read_bytes()


def test_the_precision_of_others_does_not_matter():
    case = next(case for case in all_cases(0) if case.name == "certain-chosen-60")
    with mp.workdps(5):
        assert vector(case) == next(c for c in FILES["orpo"]["cases"] if c["id"].endswith("n-60"))


@pytest.mark.parametrize("name", families())
def test_expected_numbers_have_their_digits(name):
    """30 of them, or the number ends: then few, not 29."""
    found = {len(Decimal(x).as_tuple().digits) for x in numbers(name)}
    assert all(math.isfinite(Decimal(x)) for x in numbers(name))
    assert max(found) <= 32 and (name == "sft" or max(found) >= 30)


def test_every_dtype_of_a_case_holds_its_inputs():
    for case in SHORT:
        for name in case.dtypes:
            for x in map(torch.from_numpy, case.inputs.values()):
                if x.dtype == torch.float64:
                    rounded = x.to(getattr(torch, name)).double()
                    assert torch.equal(rounded.nan_to_num(7.0), x.nan_to_num(7.0)), case.id


def test_most_cases_hold_in_every_dtype():
    narrow = [case.id for case in SHORT if len(case.dtypes) < 3]
    assert len(narrow) < len(SHORT) / 10, narrow


def test_few_cases_are_asked_for_their_value_alone():
    alone = {case.id for case in SHORT if not case.gradients}
    assert alone == {"orpo/p-is-1", "value/on-the-edge"}


@pytest.mark.parametrize("family", families())
def test_ours_pass(family):
    mine = [case for case in SHORT if case.family == family]
    results = run(ours, mine)
    assert len(results) == sum(len(case.dtypes) for case in mine) and failures(results) == []
    judged = [r for r in results if r.case.gradients]
    assert judged and all(r.gradient is not None for r in judged)
    # a bound ten times too wide would hide a factor of ten
    assert all(r.value <= r.bound / 4 and (r.gradient or 0) <= r.bound / 4 for r in results)


@pytest.mark.slow
@pytest.mark.parametrize("id", sorted(LONG))
def test_ours_pass_the_long_rows(id):
    (case,) = [c for c in load([id.split("/")[0]]) if c.id == id]
    assert failures(run(ours, [case])) == []


def redrawn(seed):
    """The cases that another seed makes other cases of, with their answers."""
    fixed = {f"{case.family}/{case.name}": repr(case.inputs) for case in all_cases(0, long=False)}
    for case in all_cases(seed, long=False):
        if fixed[f"{case.family}/{case.name}"] != repr(case.inputs):
            family = FILES[case.family]
            yield from cases_of({**family, "cases": [vector(case)]})


def test_another_seed():
    cases = list(redrawn(1))
    assert len(cases) > 80 and failures(run(ours, cases)) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_seeds():
    worst = {}
    for seed in range(1, 201):
        results = run(ours, redrawn(seed))
        assert failures(results) == [], f"seed {seed}"
        for r in results:
            error = max(r.value, r.gradient or 0.0)
            found = (
                error / r.bound,
                f"{error:.3g} of {r.bound:.3g} epsilons, {r.case.id}, {seed=}",
            )
            key = r.case.family, r.dtype
            worst[key] = max(worst.get(key, found), found)
    for (family, dtype), (_, story) in sorted(worst.items(), key=lambda item: -item[1][0]):
        print(f"{family:10}{dtype:10}{story}")


# ---------------------------------------------------------------- the generator's arithmetic


@pytest.fixture
def digits():
    with mp.workdps(arithmetic.PRECISION):
        yield


def scalar(f, *xs):
    return lambda *at: f(*(arithmetic.variable(x, i) for i, x in enumerate(at or xs))).x.v


@pytest.mark.parametrize(
    "f, xs",
    [
        (units.reward, (0.7, -0.3, 0.25)),
        (units.dpo, (-3.0, -4.5, -3.5, -4.0)),
        (units.orpo, (-0.125, -1.5)),
        (units.simpo, (-0.125, -1.5)),
        (lambda a, b: units.kl(a, b, kind="k3"), (-1.0, -1.75)),
        (units.policy, (-1.0, -1.125, 0.5)),
        (units.value, (0.75, 0.125, -1.5)),
    ],
)
def test_derivatives_are_derivatives(f, xs, digits):
    """The chain rule against a difference quotient, which knows no chain rule."""
    out = f(*(arithmetic.variable(x, i) for i, x in enumerate(xs)))
    for i in range(len(xs)):
        order = tuple(int(j == i) for j in range(len(xs)))
        slope = mp.diff(scalar(f), tuple(map(mpf, xs)), order)
        found = out.d[i].v if i in out.d else 0
        assert abs(found - slope) < mpf(10) ** -20


@pytest.mark.parametrize("f, at", [(arithmetic.log1mexp, -0.3), (arithmetic.logsigmoid, 0.4)])
def test_second_derivatives(f, at, digits):
    """What a slope is off by when its argument is: f'' times that."""
    x = arithmetic.Dual(arithmetic.Rounded(mpf(at), mpf(1)), {0: arithmetic.Rounded(mpf(1))})
    slope, bend = mp.diff(scalar(f), mpf(at)), mp.diff(scalar(f), mpf(at), 2)
    assert abs(f(x).d[0].v - slope) < mpf(10) ** -20
    assert abs(f(x).d[0].s - abs(bend) - abs(slope)) < mpf(10) ** -15


def test_it_stands_alone():
    """The folder can be taken elsewhere: of this project only implementations/ours.py imports."""
    for path in VECTORS.parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in names:
                inside = (ROOT / name.split(".")[0]).exists() or name.startswith("train")
                assert not inside or (path.name, name) == ("ours.py", "losses"), f"{path}: {name}"
