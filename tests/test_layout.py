"""The shape of the project: imports go one way, names shadow nothing, nothing is unpickled."""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest
from runs import ROOT

PACKAGES = ("data", "losses", "rollout", "runtime")
SOURCES = [ROOT / "train.py", *(f for p in PACKAGES for f in sorted((ROOT / p).rglob("*.py")))]
SCRIPTS = [*ROOT.glob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
TESTS = sorted((ROOT / "tests").glob("*.py"))
EVERYTHING = sorted({*SOURCES, *SCRIPTS, *TESTS})


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, at the top, in functions, for types."""
    package = name(path).removesuffix(".py").split("/")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            # `from losses import dpo` names a module too
            found |= {f"{module}.{alias.name}" for alias in node.names} | {module}
    return found


def of_project(path: Path) -> set[str]:
    """The project's own modules that a file imports."""
    found = set()
    for module in imports(path):
        file = ROOT.joinpath(*module.split("."))
        ours = file.with_suffix(".py").exists() or (file / "__init__.py").exists()
        if ours and module.split(".")[0] in (*PACKAGES, "train"):
            found.add(module)
    return found


def allowed(path: Path) -> set[str]:
    """What a file may import: packages whole, or single modules."""
    if name(path) == "losses/base.py":
        return {"data.trees"}
    if name(path) == "models/forward.py":
        return {"data.trees", "losses.logprobs"}
    if path.parent.name == "losses" and path.name != "__init__.py":
        return {"losses.base", "models.forward", "losses.advantages"}
    order = ["data", "losses", "rollout", "runtime"]
    own = path.relative_to(ROOT).parts[0]
    return set(order[: order.index(own) + 1]) if own in order else set(order)


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_go_one_way(path):
    for module in of_project(path):
        parents = {module.rsplit(".", i)[0] for i in range(module.count(".") + 1)}
        assert parents & allowed(path), f"{name(path)} imports {module}"


def test_the_import_check_sees_what_it_should():
    assert {"losses", "data.trees", "runtime.config"} <= of_project(ROOT / "train.py")
    assert "losses.base" in of_project(ROOT / "losses" / "dpo.py")
    assert "data.pocket.rows" in of_project(ROOT / "data" / "pocket" / "__init__.py")


def test_nothing_imports_the_loop_or_trl():
    for path in SOURCES:
        roots = {module.split(".")[0] for module in imports(path)}
        assert not roots & {"train", "trl"}, name(path)
    for path in TESTS:
        assert "trl" not in {module.split(".")[0] for module in imports(path)}, name(path)


def test_no_file_shadows_a_package():
    taken = {"evaluate", "datasets", "tokenizers", "accelerate", "transformers", "torch", "trl"}
    for path in EVERYTHING:
        assert path.stem not in taken | set(sys.stdlib_module_names), name(path)
    for package in ("evaluate", "datasets", "tokenizers", "accelerate", "types"):
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.origin is not None
        assert not Path(spec.origin).is_relative_to(ROOT) or "site-packages" in spec.origin


def test_every_folder_of_modules_is_a_package():
    for path in SOURCES[1:]:
        assert (path.parent / "__init__.py").exists(), name(path)


def calls(path: Path):
    """Every call in a file as it is written: `torch.load`, `eval`."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


# Runs functions cut out of installed packages: their code, as importing them would.
RUNS_PEERS = ROOT / "benchmarks/conformance/peer_code.py"


@pytest.mark.parametrize("path", sorted({*SOURCES, *SCRIPTS} - {RUNS_PEERS}), ids=name)
def test_nothing_that_a_file_holds_is_run(path):
    unsafe = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    assert not {module.split(".")[0] for module in imports(path)} & unsafe
    for function, options in calls(path):
        assert function not in ("eval", "exec", "torch.load", "yaml.load", "yaml.unsafe_load")
        assert options.get("trust_remote_code", "False") == "False"
        assert options.get("shell", "False") == "False" and function != "os.system"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_models_and_tokenizers_never_run_code_of_the_hub(path):
    for function, options in calls(path):
        if function.split(".")[0].startswith("Auto") and function.endswith(".from_pretrained"):
            # left out, transformers asks on stdin whether to run it
            assert options.get("trust_remote_code") == "False" or "local_files_only" in options


def test_files_stay_short():
    for path in EVERYTHING:
        assert len(path.read_text("utf-8").splitlines()) <= 400, name(path)
