"""What stands beside the code agrees with it: Makefile, workflow, hooks, pins, metadata."""

import re
import sys

import pytest
import yaml
from packaging.requirements import Requirement
from runs import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT = PYPROJECT["project"]
PYTHONS = ["3.10", "3.12"]  # that the workflow runs on
UNSHIPPED = {"benchmarks", "examples", "tests"}  # used from a checkout


def read(name):
    return (ROOT / name).read_text("utf-8")


# ------------------------------------------------------------------------------ the commands


def make_targets():
    """{target: its commands} of the Makefile."""
    targets = {}
    for line in read("Makefile").splitlines():
        if match := re.fullmatch(r"(\w+):", line):
            commands = targets[match[1]] = []
        elif line.startswith("\t"):
            commands.append(line[1:])
    return targets


def contributing_commands():
    """The same from CONTRIBUTING.md: lines of the form `command   # make target: what for`."""
    targets = {}
    for command, target in re.findall(
        r"^(\S.*?) +# make (\w+)\b.*$", read("CONTRIBUTING.md"), re.M
    ):
        targets.setdefault(target, []).append(command)
    return targets


def test_the_makefile_has_contributings_commands():
    targets = make_targets()
    assert list(targets) == re.findall(r"\w+", read("Makefile").split(".PHONY:")[1].split("\n")[0])
    del targets["help"]  # prints those lines of CONTRIBUTING.md
    assert targets == contributing_commands()
    names = "install format lint types test slow interruptions soak saving precision threads versus"
    names += " scaling rollout templates fuzz ci mutation figures links"
    assert list(targets) == names.split()


def test_ci_runs_what_make_runs():
    lines = [line.strip() for line in read(".ci/run").splitlines()]
    targets = make_targets()
    assert "ruff format --check ." in lines and targets["format"] == ["ruff format ."]
    for target in ("lint", "types"):
        assert set(targets[target]) <= set(lines), target
    assert [f"{command} -q" for command in targets["test"]] == lines[-1:]
    install = targets["install"][0].replace("pip install ", "pip install -q ")
    assert install in lines and targets["ci"] == ["bash .ci/run"]


def test_the_workflow_runs_ci_on_the_oldest_python_and_a_newer_one():
    workflow = yaml.safe_load(read(".github/workflows/ci.yml"))
    assert workflow[True].keys() == {"push", "pull_request"}  # YAML reads `on` as true
    assert workflow["permissions"] == {"contents": "read"}
    (job,) = workflow["jobs"].values()
    assert job["strategy"]["matrix"] == {"python-version": PYTHONS}  # strings: 3.10 is not 3.1
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}" and job["timeout-minutes"] <= 60
    *actions, last = job["steps"]
    assert last == {"run": "bash .ci/run"} and (ROOT / ".ci/run").exists()
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]) for step in actions)
    setup = actions[-1]["with"]
    assert setup["python-version"] == "${{ matrix.python-version }}" and setup["cache"] == "pip"
    assert setup["cache-dependency-path"].split() == ["constraints.txt", "pyproject.toml"]


def test_the_hooks_are_the_checks():
    config = yaml.safe_load(read(".pre-commit-config.yaml"))
    *pinned, local = config["repos"]
    assert all(re.fullmatch(r"v\d+\.\d+\.\d+", repo["rev"]) for repo in pinned)
    hooks = {hook["id"]: hook for repo in pinned for hook in repo["hooks"]}
    assert {"end-of-file-fixer", "trailing-whitespace", "check-yaml", "check-toml"} <= hooks.keys()
    assert local["repo"] == "local"
    ours = {hook["id"]: hook for hook in local["hooks"]}
    targets = make_targets()
    for id, target in [("ruff-format", "format"), ("ruff-check", "lint")]:
        command = ours[id]["entry"].removesuffix(" --force-exclude")
        assert targets[target] == [f"{command} ."]
    types = [hook for id, hook in ours.items() if id.startswith("mypy")]
    assert [hook["entry"] for hook in types] == targets["types"]
    assert not any(hook["pass_filenames"] for hook in types)  # the configuration says which
    assert len(ours) == 2 + len(types)
    # from the environment that constraints.txt describes, so that there is one version of each
    assert all(hook["language"] == "system" for hook in ours.values())


# ------------------------------------------------------------------------------ the versions


def pins(python):
    """{name: version} of constraints.txt on one Python."""
    found = {}
    for line in read("constraints.txt").splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            if pin.marker is None or pin.marker.evaluate({"python_version": python}):
                (version,) = pin.specifier
                assert version.operator == "==" and normal(pin.name) not in found, line
                found[normal(pin.name)] = version.version
    return found


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("python", [*PYTHONS, "3.11"])
def test_all_that_is_asked_for_is_pinned_on_every_python(python):
    versions = pins(python)
    extras = PROJECT["optional-dependencies"].values()
    for line in [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]:
        wanted = Requirement(line)
        if wanted.name != PROJECT["name"]:
            assert versions[normal(wanted.name)] in wanted.specifier, line


def test_an_older_python_has_older_pins_and_lacks_none():
    assert pins("3.11") == pins("3.12") and pins("3.11").keys() <= pins("3.10").keys()


# ------------------------------------------------------------------------------ the metadata


def test_every_package_is_listed_and_typed():
    packages = {
        str(path.parent.relative_to(ROOT)).replace("/", ".")
        for path in ROOT.glob("*/**/__init__.py")
        if path.relative_to(ROOT).parts[0].isidentifier()
    }
    packages = {p for p in packages if p.split(".")[0] not in UNSHIPPED | {"build", "mutants"}}
    setuptools = PYPROJECT["tool"]["setuptools"]
    assert set(setuptools["packages"]) == packages
    for package in packages:
        assert (ROOT.joinpath(*package.split(".")) / "py.typed").exists(), package
    assert setuptools["package-data"]["*"] == ["py.typed"]
    assert "Typing :: Typed" in PROJECT["classifiers"]


def test_the_citation_is_that_of_this_version():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["cff-version"] == "1.2.0" and citation["message"]
    assert citation["type"] == "software" and citation["title"] == PROJECT["name"]
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"] == PROJECT["authors"]
    assert citation["keywords"] == PROJECT["keywords"] == sorted(PROJECT["keywords"])


def test_the_changelog_is_kept():
    text = read("CHANGELOG.md")
    versions = re.findall(r"^## \[(.+)\] - (\d{4}-\d\d-\d\d|unreleased)$", text, re.M)
    assert len(versions) == text.count("\n## ") and versions[0][0] == PROJECT["version"]
    assert all(date != "unreleased" for _, date in versions[1:])
    kinds = set(re.findall(r"^### (.*)$", text, re.M))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_every_supported_python_is_said():
    said = [c.split()[-1] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert said == ["3.10", "3.11", "3.12"] and set(PYTHONS) <= set(said)
