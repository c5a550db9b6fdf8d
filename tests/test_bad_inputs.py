"""The mistakes a user makes first: one line, the right exit code, and nothing of theirs is lost."""

import json
import resource
import shutil

import pytest
from datafiles import PAIR as ROW
from runs import BASE, copy_base, no_model, pocket_rows, random_llama, run, write_rows
from small_tokenizers import gpt2

from data import errors
from runtime.files import read_json

PIQA = {"goal": "g", "sol1": "one", "sol2": "two"}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Rows with nothing wrong in them."""
    return write_rows(tmp_path_factory.mktemp("good"), *pocket_rows(8, 4))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, good):
    """A run directory as a run leaves it."""
    out = tmp_path_factory.mktemp("finished") / "out"
    done = run("--loss", "sft", "--data", good, "--max_steps", 1, "--output_dir", out)
    assert done.code == 0, done.err
    return out


def start(out, *flags, before=None):
    return run("--loss", "dpo", "--max_steps", 1, "--output_dir", out, *flags, before=before)


def status(out):
    return json.loads((out / "status.json").read_text())


def contents(folder):
    return {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}


# ---------------------------------------------------------------- the data


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


BAD_DATA = {
    "empty file": ({"train.jsonl": ""}, "train.jsonl:1: the file has no rows"),
    "missing column": (
        {"train.jsonl": jsonl({"prompt": "p", "chosen": "c"})},
        "train.jsonl:1:rejected: the column is missing; add it",
    ),
    "no pairs": (
        {"train.jsonl": jsonl({"prompt": "p", "completion": "c"})},
        "train.jsonl:1:rejected: the column is missing, and this loss compares two responses",
    ),
    "null": ({"train.jsonl": jsonl(ROW, ROW | {"prompt": None})}, "train.jsonl:2:prompt: null is"),
    "wrong type": ({"train.jsonl": jsonl(ROW | {"chosen": 3})}, "train.jsonl:1:chosen: 3 is not a"),
    "label 2": ({"train.jsonl": jsonl(PIQA | {"label": 2})}, "train.jsonl:1:label: 2 is not 0 or"),
    "label count": (
        {"train.jsonl": jsonl(PIQA, PIQA | {"goal": "h"}), "train-labels.lst": "0\n"},
        "train-labels.lst:2: 1 labels for 2 rows",
    ),
    "chosen == rejected": (
        {"train.jsonl": jsonl(ROW, ROW | {"rejected": " c"})},
        "train.jsonl:2:rejected: the same as chosen, nothing to prefer; remove the row",
    ),
    "held-out row": (
        {"train.jsonl": jsonl(ROW), "valid.jsonl": jsonl(ROW | {"chosen": " "})},
        "valid.jsonl:1:chosen: the response is empty",
    ),
}


@pytest.mark.parametrize("files, message", BAD_DATA.values(), ids=BAD_DATA)
def test_bad_data_is_named_by_file_and_line_before_the_model_is_loaded(tmp_path, files, message):
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    for name, text in files.items():
        (data / name).write_text(text)
    done = start(out, "--data", data, before=no_model)
    assert done.code == errors.BAD_DATA and f"{data}/{message}" in done.line
    assert status(out) | {"state": "failed", "exit_code": 65, "reason": done.line} == status(out)
    assert sorted(f.name for f in out.iterdir()) == ["run.json", "run.lock", "status.json"]


@pytest.mark.parametrize("flags, code, message", [
    (["--data", "nosuch.jsonl"], errors.NO_INPUT, "no such file or directory: nosuch.jsonl; check"),
    (["--data", "piqa"], errors.UNAVAILABLE, "hf download --repo-type dataset baber/piqa"),
    (["--max_length", 2], errors.BAD_DATA, "48 no room for a response); give other data or a max"),
    (["--model", "./nosuch"], errors.NO_INPUT, "--model ./nosuch: no such directory"),
    (["--model", "no/such/dir"], errors.NO_INPUT, "--model no/such/dir: no such directory"),
    (["--model", "org/name"], errors.UNAVAILABLE, "run `hf download org/name` on a connected mach"),
    (["--ref_model", "./nosuch"], errors.NO_INPUT, "--ref_model ./nosuch: no such directory"),
    (["--ref_model", "a/b"], errors.UNAVAILABLE, "--ref_model a/b: no such directory, and the hub"),
])  # fmt: skip
def test_what_is_not_there_is_found_before_the_model_is_loaded(tmp_path, flags, code, message):
    data = [] if "--data" in flags else ["--data", write_rows(tmp_path, *pocket_rows())]
    done = start(tmp_path / "out", *data, *flags, before=no_model)
    assert done.code == code and message in done.line
    assert status(tmp_path / "out")["reason"] == done.line


@pytest.mark.parametrize("flags, message", [
    (["--label_smoothing", 0.6], "label_smoothing 0.6 must be in [0, 0.5)"),
    (["--beta", 0], "--beta 0.0 must be above 0"),
    (["--report_to", "wanb"], "--report_to wanb: choose from "),
    (["--columns", "chosen"], "--columns chosen: write ours=theirs"),
    (["--report_to", "dvclive"], "--report_to dvclive is not installed: pip install dvclive"),
    (["--nosuch", 1], "unknown flag --nosuch"),
])  # fmt: skip
def test_a_wrong_flag_makes_no_run_directory(tmp_path, flags, message):
    done = start(tmp_path / "out", *flags, before=no_model)
    assert done.code == errors.USAGE and message in done.line
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- the model


def cut(model):
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def other_shape(model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"intermediate_size": 8}))


def one_weight_less(model):
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def nan_weight(model, name, start):
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    weights[name][start:] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def small_embedding(model):
    random_llama(model, gpt2())
    shutil.copyfile(BASE / "tokenizer.json", model / "tokenizer.json")


BAD_MODELS = {
    "config is not JSON": (
        lambda model: (model / "config.json").write_text("{"),
        "config.json' is not a valid JSON file",
    ),
    "unknown architecture": (
        lambda model: (model / "config.json").write_text('{"model_type": "nosuch"}'),
        "model type `nosuch` but Transformers does not recognize this architecture",
    ),
    "no config": (lambda model: (model / "config.json").unlink(), "no config.json in this direct"),
    "no tokenizer": (
        lambda model: [file.unlink() for file in model.glob("token*")],
        "its tokenizer cannot be loaded: no tokenizer.json in this directory",
    ),
    "tokenizer is not JSON": (
        lambda model: (model / "tokenizer.json").write_text("{"),
        "its tokenizer cannot be loaded",
    ),
    "no weights": (
        lambda model: (model / "model.safetensors").unlink(),
        "it cannot be loaded: Error no file named model.safetensors",
    ),
    "weights cut short": (cut, "a weight file is cut short or damaged"),
    "another shape": (other_shape, "in its weight files and ("),
    "one weight less": (one_weight_less, "its weight files have no model.norm.weight"),
    "smaller than its tokenizer": (small_embedding, "they do not belong together"),
}


@pytest.mark.parametrize("spoil, message", BAD_MODELS.values(), ids=BAD_MODELS)
def test_a_damaged_model_is_one_line_and_never_trained(tmp_path, good, spoil, message):
    model = copy_base(tmp_path / "model")
    spoil(model)
    done = start(tmp_path / "out", "--data", good, "--model", model)
    assert done.code in (errors.BAD_DATA, errors.NO_INPUT)
    assert done.line.startswith(f"--model {model}: ") and message in done.line
    assert status(tmp_path / "out")["reason"] == done.line


def test_a_reference_with_another_vocabulary_is_refused(tmp_path, good):
    other = random_llama(tmp_path / "other", gpt2())
    done = start(tmp_path / "out", "--data", good, "--ref_model", other, before=no_model)
    assert done.code == errors.USAGE
    assert done.line.startswith(f"--ref_model {other}: its vocabulary is another one (token ")


@pytest.mark.parametrize("loss", ["sft", "dpo"])
@pytest.mark.parametrize("name, start", [
    ("model.norm.weight", 0), ("model.embed_tokens.weight", 100),  # tokens of some rows only
])  # fmt: skip
def test_a_nan_in_the_weights_ends_the_run_before_the_first_step(tmp_path, good, loss, name, start):
    model, out = copy_base(tmp_path / "model"), tmp_path / "out"
    nan_weight(model, name, start)
    done = run("--loss", loss, "--data", good, "--model", model, "--output_dir", out)
    assert done.code == errors.BAD_DATA and done.line.endswith(f"have NaN or infinity in {name}")
    assert not (out / "metrics.jsonl").exists()


# ---------------------------------------------------------------- the run directory


def test_an_earlier_run_is_kept_until_overwrite_is_given(finished, good):
    kept = contents(finished)
    done = start(finished, "--data", good, before=no_model)
    assert done.code == errors.CANNOT_CREATE
    assert done.line.endswith(
        "holds a finished run; give --output_dir another directory, or --overwrite to replace it"
    )
    assert contents(finished) == kept


@pytest.mark.parametrize("flags", [
    ["--data", "nosuch.jsonl"], ["--model", "./nosuch"], ["--ref_model", "./nosuch"],
])  # fmt: skip
def test_a_mistake_under_overwrite_loses_nothing(finished, good, flags):
    kept = contents(finished)
    assert start(finished, "--overwrite", "--data", good, *flags).code == errors.NO_INPUT
    assert contents(finished) == kept


def test_a_bad_model_under_overwrite_loses_nothing(finished, good, tmp_path):
    kept, model = contents(finished), copy_base(tmp_path / "model")
    cut(model)
    for flag in ("--model", "--ref_model"):
        done = start(finished, "--overwrite", "--data", good, flag, model)
        assert done.code == errors.BAD_DATA and done.line.startswith(f"{flag} {model}: a weight")
    assert contents(finished) == kept


def test_overwrite_replaces_the_earlier_run(finished, good, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    (out / "final" / "old.txt").write_text("the user's own")
    made = list((out / "final").glob("*.safetensors"))[0]
    made.rename(out / "final" / "part-2.safetensors")  # of a model in several files
    marker = read_json(out / "run.json")
    marker["files"].append("final/part-2.safetensors")
    (out / "run.json").write_text(json.dumps(marker))
    assert start(out, "--data", good, "--overwrite").code == 0
    assert status(out)["state"] == "finished"
    assert (out / "final" / "old.txt").exists() and made.exists()
    assert not (out / "final" / "part-2.safetensors").exists()
    assert json.loads((out / "summary.json").read_text())["loss"] == "dpo"


def test_a_directory_in_use_is_refused_and_free_after_the_run(tmp_path, good):
    from filelock import FileLock

    out = tmp_path / "out"
    out.mkdir()
    state = {"state": "running", "pid": 123, "host": "here", "started": "now"}
    (out / "status.json").write_text(json.dumps(state))
    (out / "run.json").write_text(json.dumps({"made_by": "alignment-losses", "files": []}))
    with FileLock(out / "run.lock"):
        done = start(out, "--data", good, "--overwrite", before=no_model)
    assert done.code == errors.CANNOT_CREATE
    assert done.line == f"{out}: a run is going on here (process 123 on here, since now)"
    assert status(out) == state
    assert start(out, "--data", good).code == 0


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    done = start(tmp_path / "file" / "out", before=no_model)
    assert done.code == errors.CANNOT_CREATE
    assert done.line == f"{tmp_path}/file/out: Not a directory; see --output_dir"


def small_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))


def test_a_full_disk_is_one_line_and_leaves_no_half_model(tmp_path, good):
    done = start(tmp_path / "out", "--data", good, before=small_files)
    assert done.code == errors.IO_ERROR and done.line.startswith("reading or writing failed: ")
    assert not (tmp_path / "out" / "final").exists()
    assert status(tmp_path / "out")["reason"] == done.line


def broken_step():
    import train

    def step(*_):
        raise RuntimeError("out of luck")

    train.optimizer_step = step


def test_an_error_of_ours_shows_where_and_is_recorded(tmp_path, good):
    done = start(tmp_path / "out", "--data", good, before=broken_step)
    assert done.code == 1 and "Traceback" in done.err
    recorded = status(tmp_path / "out")
    assert recorded["state"] == "failed"
    assert recorded["reason"].startswith("RuntimeError: out of luck; nothing is saved")
