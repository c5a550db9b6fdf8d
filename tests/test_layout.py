"""The shape of the project: imports go one way, names shadow nothing, nothing is unpickled."""

import ast
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ROOT

# Every file may import what stands before it, and nothing else: data goes one way, file by file.
# Imports for types count. A loss, losses/<name>.py, stands in the place of LOSSES.
ORDER = """
data/ errors files archives columnar tables readers options messages transcripts formats join rows
data/ row_table template rendering chat tokens encode batches trees splits unread
data/pocket/ world rows text base __init__ __main__
data/ piqa selection shards cards folders locations sources records prompts
data/ prepared token_cache __init__
losses/ base sampling_config advantages logprobs LOSSES __init__
models/ precision locate checkpoint pad load save forward inference layout __init__
rollout/ state rewards sample answers score reward_model experience steps __init__
runtime/ state files config directory metrics optimizer
runtime/cli/ flags config_file parse __init__
runtime/process/ threads signals peers __init__
runtime/guards/ outputs limits finite memory best __init__
runtime/ report card curves
runtime/checkpoints/ store content identity saver __init__
runtime/ launch run
runtime/sources/ base heldout lm_harness reference rows rewards prompts __init__
runtime/session/ preflight finish session __init__
runtime/ __init__
"""
PACKAGES = ("data", "losses", "models", "rollout", "runtime")
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


def places() -> dict[str, int]:
    """{file: its place in ORDER}, for every file of the packages."""
    found: dict[str, int] = {}
    losses = [path.stem for path in SOURCES if "\nLOSS = " in path.read_text("utf-8")]
    for number, line in enumerate(ORDER.split("\n")):
        folder, *stems = line.split() or [""]
        for place, stem in enumerate(stems):
            for one in losses if stem == "LOSSES" else [stem]:
                found[f"{folder}{one}.py"] = 100 * number + place
    return found


def file_of(module: str) -> str:
    file = ROOT.joinpath(*module.split("."))
    return name(
        file.with_suffix(".py") if file.with_suffix(".py").exists() else file / "__init__.py"
    )


def test_every_file_has_a_place():
    assert places().keys() == {name(path) for path in SOURCES[1:]}


@pytest.mark.parametrize("path", SOURCES[1:], ids=name)
def test_imports_go_one_way(path):
    order = places()
    for module in of_project(path) - {name(path.parent).replace("/", ".")}:
        file = file_of(module)
        # `from data.pocket import BASE_DIR` names the package and not its __init__ alone
        assert order[file] < order[name(path)], f"{name(path)} imports {file}, which stands below"


@pytest.mark.parametrize("path", sorted((ROOT / "losses").glob("*.py")), ids=name)
def test_losses_need_torch_and_einops_alone(path):
    """Of this project they name data.trees, for types: it is not there when they run elsewhere."""
    typed = {
        statement
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in map(ast.unparse, node.body)
    }
    assert typed <= {"from data.trees import TreeBatch"}
    found = {module.split(".")[0] for module in imports(path)} - {"losses", "data"}
    assert found <= {"torch", "einops", *sys.stdlib_module_names}
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "losses":
            raise AssertionError(f"{name(path)}:{node.lineno}: not a relative import")


def test_losses_run_as_a_copy_under_another_name(tmp_path):
    shutil.copytree(ROOT / "losses", tmp_path / "my_copy")
    code = (
        "import sys, torch, my_copy; x = torch.zeros(2);"
        "print(my_copy.dpo_loss(x, x, x, x).tolist(), my_copy.LOSSES['ppo'].config().clip);"
        "print({'data', 'losses', 'models', 'transformers', 'accelerate'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines() == ["[0.6931471824645996, 0.6931471824645996] 0.2", "set()"]


def test_one_door_to_a_hugging_face_model():
    """The layers below the head are reached by models.forward.body, which knows what wraps them."""
    for path in SOURCES:
        if name(path) != "models/forward.py":
            assert ".base_model" not in path.read_text("utf-8"), name(path)


def test_the_import_check_sees_what_it_should():
    assert {"losses", "data.trees", "runtime.config"} <= of_project(ROOT / "train.py")
    assert {"losses.base", "data.trees"} <= of_project(ROOT / "losses" / "dpo.py")
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
        most = 300 if path in SOURCES else 400
        assert len(path.read_text("utf-8").splitlines()) <= most, name(path)


def test_folders_stay_few_files():
    assert len(list((ROOT / "runtime").glob("*.py"))) <= 12


def test_train_is_one_page():
    functions = [
        n
        for n in ast.parse((ROOT / "train.py").read_text("utf-8")).body
        if isinstance(n, ast.FunctionDef)
    ]
    lengths = {f.name: f.end_lineno - f.lineno + 1 for f in functions}
    assert lengths["train"] <= 90
