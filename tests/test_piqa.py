"""`python -m benchmarks.piqa`: any model, the table, the results file, one line for an error."""

import json
import math
import os
import shutil
import subprocess
import sys
from fractions import Fraction

import pytest
import torch
from lm_evals import DOCS, write_docs
from runs import BASE, OFFLINE, QUICK, ROOT, run

from benchmarks import piqa
from benchmarks.paired import mcnemar, mean_and_stderr, one_sided
from data import errors
from models.load import load_causal_lm, load_tokenizer
from runtime.sources.lm_harness import piqa_scores

# ---------------------------------------------------------------- statistics


def two_sided(a_only, b_only):
    """The probability of all outcomes of n fair coins that are no more likely than this one."""
    n = a_only + b_only
    likely = [Fraction(math.comb(n, k), 2**n) for k in range(n + 1)]
    return sum(p for p in likely if p <= likely[a_only])


@pytest.mark.parametrize("a_only, b_only", [
    (0, 0), (1, 0), (0, 5), (3, 6), (4, 4), (10, 2), (22, 120), (700, 500),
])  # fmt: skip
def test_mcnemar_is_the_exact_binomial_test(a_only, b_only):
    stats = pytest.importorskip("scipy.stats")
    p = mcnemar(a_only, b_only)
    assert p == float(two_sided(a_only, b_only)) == mcnemar(b_only, a_only)
    if a_only + b_only:
        expected = stats.binomtest(a_only, a_only + b_only).pvalue
        assert p == pytest.approx(expected, rel=1e-9)


def test_mcnemar_by_hand():
    assert mcnemar(0, 0) == 1
    assert mcnemar(0, 5) == 2 / 32  # all five tosses alike
    assert mcnemar(1, 4) == 2 * (1 + 5) / 32
    assert mcnemar(3, 3) == 1


def test_only_rows_that_tell_two_models_apart_count():
    assert one_sided([1, 1, 0, 0, 1, 0], [1, 0, 1, 0, 0, 0]) == (2, 1)
    with pytest.raises(ValueError):
        one_sided([1], [1, 0])


def test_the_standard_error():
    p, stderr = mean_and_stderr([1, 0, 1, 1])
    assert p == 0.75 and stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 3), rel=1e-15)
    assert mean_and_stderr([1]) == (1.0, None)


# ---------------------------------------------------------------- models


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run on PIQA rows, an adapter on its model, and a reward model."""
    out = tmp_path_factory.mktemp("piqa")
    data = write_docs(out / "data")
    for loss in ("dpo", "reward"):
        flags = ["--data", data, "--output_dir", out / "runs" / loss, *QUICK]
        assert run("--loss", loss, *flags).code == 0
    make_adapter(out / "runs" / "dpo" / "final", out / "adapter")
    return out


def make_adapter(base, folder):
    """A LoRA adapter that does something."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(load_causal_lm(str(base), dtype="float32"), lora)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    model.save_pretrained(folder)
    return model.merge_and_unload()


def scores(model, tokenizer):
    return [list(row) for row in piqa_scores(model, tokenizer, DOCS)]


def call(*flags):
    return piqa.main([str(flag) for flag in flags])


@pytest.fixture
def failed(capsys):
    """Call the program for an error: its exit code and its one line."""

    def start(*flags):
        code = call(*flags)
        err = capsys.readouterr().err
        assert err.startswith("benchmarks.piqa: ") and err.count("\n") == 1, err
        return code, err.removeprefix("benchmarks.piqa: ").rstrip("\n")

    return start


def test_every_kind_of_model_in_one_call(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    names = ["pocket", "runs/dpo", str(folder / "adapter")]
    flags = ["--data", folder / "data", "--output", folder / "deep" / "er" / "found.json"]
    assert call("--model", *names, *flags) == 0
    printed = capsys.readouterr().out
    found = json.loads((folder / "deep/er/found.json").read_text("utf-8"))

    base = load_causal_lm("pocket", dtype="float32"), load_tokenizer("pocket")
    final = str(folder / "runs" / "dpo" / "final")
    trained = load_causal_lm(final, dtype="float32"), load_tokenizer(final)
    merged = make_adapter(final, folder / "again"), trained[1]
    rows = [entry["rows"] for entry in found["models"]]
    assert rows[:2] == [scores(*base), scores(*trained)]
    assert rows[2] != rows[1]
    for ours, expected in zip(rows[2], scores(*merged), strict=True):
        assert ours == pytest.approx(expected, rel=1e-4)  # adding B A x is not multiplying W + B A

    assert [entry["model"] for entry in found["models"]] == ["pocket", "runs/dpo", "adapter"]
    for entry in found["models"]:
        for i, metric in ((2, "acc"), (3, "acc_norm")):
            share = sum(row[i] for row in entry["rows"]) / len(DOCS)
            assert entry[metric] == share
            assert entry[f"{metric}_stderr"] == math.sqrt(share * (1 - share) / (len(DOCS) - 1))
            assert f"{share:.4f} ± {entry[f'{metric}_stderr']:.4f}" in printed
    pairs = {(pair["a"], pair["b"], pair["metric"]) for pair in found["paired"]}
    assert pairs == {("pocket", b, m) for b in ("runs/dpo", "adapter") for m in ("acc", "acc_norm")}
    for pair in found["paired"]:
        i, b = (
            2 + (pair["metric"] == "acc_norm"),
            ["pocket", "runs/dpo", "adapter"].index(pair["b"]),
        )
        right = [(int(x[i]), int(y[i])) for x, y in zip(rows[0], rows[b], strict=True)]
        assert (pair["a_only"], pair["b_only"]) == (right.count((1, 0)), right.count((0, 1)))
        assert pair["p"] == float(two_sided(pair["a_only"], pair["b_only"]))
    assert printed.count("McNemar p = ") == 4

    assert found["task"] == "piqa" and found["task_version"] == 1.0
    assert {"lm_eval", "versions", "commit", "machine", "command"} <= set(found)
    assert found["data"]["source"] == "valid.jsonl" and found["data"]["rows"] == len(DOCS)
    assert str(folder) not in json.dumps(found), "where things lie on this machine"


def test_the_digest_is_that_of_the_rows(folder, tmp_path):
    digests = []
    for docs in (DOCS, DOCS, [*DOCS[1:], DOCS[0]]):
        data = write_docs(tmp_path / f"{len(digests)}", docs)
        output = data / "found.json"
        assert call("--model", "pocket", "--data", data / "valid.jsonl", "--output", output) == 0
        digests.append(json.loads(output.read_text("utf-8"))["data"]["sha256"])
    assert digests[0] == digests[1] != digests[2]


def test_one_row_has_no_standard_error(tmp_path, capsys):
    data = write_docs(tmp_path, DOCS[:1])
    assert call("--model", "pocket", "--data", data, "--output", tmp_path / "found.json") == 0
    found = json.loads((tmp_path / "found.json").read_text("utf-8"))
    assert found["models"][0]["acc_stderr"] is None and found["paired"] == []
    assert "±" not in capsys.readouterr().out


# ---------------------------------------------------------------- without a network


def test_it_needs_no_network_and_starts_without_torch(folder, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import socket\n"
        "def refuse(*args, **options):\n"
        "    raise SystemExit(f'network: {args}')\n"
        "socket.getaddrinfo = refuse\n"
        "socket.socket.connect = refuse\n"
    )
    env = {k: v for k, v in (os.environ | OFFLINE).items() if k != "HF_HUB_OFFLINE"}
    env |= {"PYTHONPATH": f"{tmp_path}:{ROOT}", "HF_HOME": str(tmp_path / "home")}
    flags = ["--model", "runs/dpo", str(folder / "adapter"), "--data", str(folder / "data")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.piqa", *flags],
        env=env, cwd=folder, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "McNemar" in done.stdout

    program = (
        "import sys; from benchmarks import piqa; piqa.parse_args(['--model', 'x']);"
        "print({'torch', 'transformers', 'numpy', 'lm_eval'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "set()\n", done


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("flags, code, line", [
    (["--data", "pocket"], errors.USAGE, "--model; see --help"),
    (["--model", "pocket", "--batch_size", "0"], errors.USAGE, "--batch_size 0 must be above 0"),
    (["--model", "pocket", "--modle", "x"], errors.USAGE, "unrecognized arguments: --modle x"),
    (["--model", "pocket", "pocket", "--data", "pocket"], errors.USAGE, "pocket is given twice"),
    (["--model", "./no/a", "--data", "pocket"], errors.NO_INPUT, "./no/a: no such directory"),
    (["--model", "pocket", "--data", "no.jsonl"], errors.NO_INPUT, "no.jsonl; check the path"),
])  # fmt: skip
def test_what_is_wrong_is_one_line_and_an_exit_code(failed, flags, code, line):
    found, said = failed(*flags)
    assert found == code and line in said


def test_a_bad_row_is_named_by_line_and_column(failed, tmp_path):
    data = write_docs(tmp_path, [DOCS[0], DOCS[1] | {"label": 2}])
    code, line = failed("--model", "pocket", "--data", data)
    assert code == errors.BAD_DATA
    assert line.startswith(f"{data}/valid.jsonl:2:label: 2 is not 0 or 1; ")


def test_a_reward_model_and_a_run_without_a_model_are_refused(failed, folder, tmp_path):
    code, line = failed("--model", folder / "runs" / "reward", "--data", folder / "data")
    assert code == errors.USAGE and "a reward model (LlamaForSequenceClassification)" in line
    shutil.copytree(folder / "runs" / "dpo", tmp_path / "dpo")
    shutil.rmtree(tmp_path / "dpo" / "final")
    (tmp_path / "dpo" / "status.json").write_text('{"state": "failed"}')
    code, line = failed("--model", tmp_path / "dpo", "--data", folder / "data")
    assert code == errors.NO_INPUT and "this run is failed and left no final/" in line


def test_an_adapter_without_peft_or_without_its_base_model(failed, folder, tmp_path, monkeypatch):
    adapter = shutil.copytree(folder / "adapter", tmp_path / "adapter")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "peft", None)
        code, line = failed("--model", adapter, "--data", folder / "data")
    assert code == errors.USAGE and "pip install 'alignment-losses[lora]'" in line
    config = json.loads((adapter / "adapter_config.json").read_text())
    for base, expected in ((str(tmp_path / "gone"), errors.NO_INPUT), (None, errors.BAD_DATA)):
        config["base_model_name_or_path"] = base
        (adapter / "adapter_config.json").write_text(json.dumps(config))
        code, line = failed("--model", adapter, "--data", folder / "data")
        assert code == expected and "adapter_config.json: " in line


def test_a_model_that_says_nan_has_no_accuracy(failed, folder, tmp_path):
    from safetensors.torch import load_file, save_file

    model = shutil.copytree(BASE, tmp_path / "model", copy_function=shutil.copyfile)
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], 3e38)
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    output = tmp_path / "found.json"
    code, line = failed("--model", model, "--data", folder / "data", "--output", output)
    assert code == errors.NOT_FINITE and "the log-probabilities of row 1 are nan and nan" in line
    assert not output.exists()


def test_a_results_file_that_cannot_be_written_is_told_before_the_work(failed, folder, tmp_path):
    (tmp_path / "file").write_text("")
    output = tmp_path / "file" / "found.json"
    code, line = failed("--model", "pocket", "--data", folder / "data", "--output", output)
    assert code == errors.IO_ERROR and line.startswith("reading or writing failed: ")


@pytest.mark.parametrize("name, code, said", [
    ("", errors.USAGE, "a directory, and a file is needed"),
    ("x" * 250, errors.IO_ERROR, "File name too long"),  # with .partial at its end
])  # fmt: skip
def test_so_is_one_whose_folder_can_be_had(failed, tmp_path, monkeypatch, name, code, said):
    monkeypatch.setattr(piqa, "evaluate", lambda *_: pytest.fail("the work was begun"))
    found, line = failed("--model", "pocket", "--data", "pocket", "--output", tmp_path / name)
    assert found == code and said in line and str(tmp_path) in line


def test_the_results_file_of_before_stays_until_there_are_new_ones(failed, tmp_path):
    output = tmp_path / "found.json"
    output.write_text("before")
    failed("--model", "pocket", "--data", tmp_path / "no.jsonl", "--output", output)
    assert output.read_text() == "before" and list(tmp_path.iterdir()) == [output]
