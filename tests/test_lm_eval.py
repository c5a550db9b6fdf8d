"""The numbers are lm-eval's: the harness, the loop's own evaluation and the command line agree."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from lm_evals import DOCS, ROWS, as_the_manual_says, heldout, models, row_of, write_docs
from ranks import run_on_two_ranks
from runs import OFFLINE, QUICK, run
from tolerances import loose

from benchmarks import piqa
from data.batches import inference_batches
from data.pocket import BASE_DIR
from data.splits import Split
from losses import LOSSES
from losses.base import masked_sum
from models.forward import Policy
from runtime.sources.heldout import evaluate_rows
from runtime.sources.lm_harness import piqa_scores, piqa_task

NAMES = ("base", "trained")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """data/ with the rows, and run/ with a model trained on them for three steps."""
    out = tmp_path_factory.mktemp("lm_eval")
    data = write_docs(out / "data")
    done = run("--loss", "dpo", "--data", data, "--output_dir", out / "run", *QUICK)
    assert done.code == 0, done.err
    return out


@pytest.fixture(scope="module")
def both(folder):
    """(model, tokenizer) before and after training."""
    return dict(zip(NAMES, models("pocket", folder / "run" / "final"), strict=True))


@pytest.fixture(scope="module")
def theirs(folder, both):
    """(results, samples) of lm-eval without anything of ours in between."""
    file, cache = folder / "data" / "valid.jsonl", folder / "cache"
    return {
        name: as_the_manual_says(model, tokenizer, file, cache)
        for name, (model, tokenizer) in both.items()
    }


@pytest.fixture(scope="module")
def two_ranks(folder, both):
    """What each of two processes found, and the results file that they wrote."""
    run_on_two_ranks("rank_lm_eval.py", folder)
    return [json.loads((folder / f"{name}.json").read_text("utf-8")) for name in (0, 1, "two")]


def accuracies_of_rows(accelerator, model, rows):
    """(accuracy, accuracy_norm) as the training loop evaluates them, of one row after the other."""
    policy, loss = Policy(model), LOSSES["sft"]
    found = [
        evaluate_rows(accelerator, policy, loss, loss.config(), Split([row]), 4096)
        for row in rows.rows
    ]
    return [[row["accuracy"], row["accuracy_norm"]] for row in found]


# ---------------------------------------------------------------- one process


@pytest.mark.parametrize("batch_size", [1, 4, 16])
@pytest.mark.parametrize("name", NAMES)
def test_the_harness_says_what_lm_eval_says(both, theirs, name, batch_size):
    found = piqa_scores(*both[name], DOCS, batch_size=batch_size)
    results, samples = theirs[name]
    bound = loose(torch.float32)
    for ours, sample in zip(found, samples, strict=True):
        assert ours == pytest.approx(row_of(sample), rel=bound)
    for metric in ("acc", "acc_norm"):
        mean, stderr = piqa.mean_and_stderr([getattr(row, metric) for row in found])
        assert mean == results[f"{metric},none"]
        assert stderr == pytest.approx(results[f"{metric}_stderr,none"], rel=1e-12)


def test_training_has_changed_the_model_and_the_rows_tell(theirs):
    base, trained = ([row_of(sample) for sample in theirs[name][1]] for name in NAMES)
    assert all(before[:2] != after[:2] for before, after in zip(base, trained, strict=True))
    assert len({row[2:] for row in base + trained}) > 2, "acc and acc_norm must differ somewhere"


def test_the_task_is_lm_evals_own_as_its_loader_reads_it():
    import lm_eval
    from lm_eval.tasks._yaml_loader import load_yaml

    assert piqa_task() == load_yaml(Path(lm_eval.__file__).parent / "tasks/piqa/piqa.yaml")
    assert piqa_task()["task"] == "piqa" and piqa_task()["dataset_path"] == "baber/piqa"


@pytest.mark.parametrize("name", NAMES)
def test_the_loops_accuracies_are_lm_evals_row_by_row(folder, both, theirs, name):
    model, tokenizer = both[name]
    accuracies = accuracies_of_rows(
        Accelerator(cpu=True), model, heldout(folder / "data", tokenizer)
    )
    assert accuracies == [list(row_of(sample)[2:]) for sample in theirs[name][1]]


@pytest.mark.parametrize("name", NAMES)
def test_the_loops_log_probs_are_lm_evals(folder, both, theirs, name):
    model, tokenizer = both[name]
    data, policy = heldout(folder / "data", tokenizer), Policy(model)
    (plan,) = inference_batches(data.lengths, 1, 100)
    assert len(plan) > 1
    for members in plan:
        batch = data.batch(members, torch.device("cpu"))
        with torch.no_grad():
            ours = masked_sum(policy(batch), batch.text_mask()).view(-1, 2)
        for pair, i in zip(ours.tolist(), members, strict=True):
            solutions, label = row_of(theirs[name][1][i])[:2], ROWS[i][3]
            expected = [solutions[label], solutions[1 - label]]
            assert pair == pytest.approx(expected, rel=10 * loose(torch.float32))


def test_under_mixed_precision_the_softmax_is_in_float32(both):
    accelerator = SimpleNamespace(mixed_precision="bf16", process_index=0, num_processes=1)
    plain = torch.tensor([row[:2] for row in piqa_scores(*both["base"], DOCS)])
    mixed = torch.tensor(
        [row[:2] for row in piqa_scores(*both["base"], DOCS, accelerator=accelerator)]
    )
    assert (mixed != plain).any()
    assert torch.allclose(mixed, plain, rtol=loose(torch.bfloat16))
    assert (mixed.to(torch.bfloat16).float() != mixed).any(), "sums of bfloat16 log-probs"


# ---------------------------------------------------------------- two processes


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_find_what_one_finds(both, folder, two_ranks, name):
    (first, single, accuracies), other = two_ranks[0][name], two_ranks[1][name]
    scores = [list(row) for row in piqa_scores(*both[name], DOCS, batch_size=4)]
    assert first == scores and single == scores[:1]
    assert other == [first, single, accuracies], "every process has the whole result"
    assert accuracies == [row[2:] for row in scores]


def test_the_program_on_two_processes_writes_what_one_writes(folder, two_ranks):
    flags = ["--model", "pocket", str(folder / "run" / "final"), "--data", str(folder / "data")]
    assert piqa.main([*flags, "--batch_size", "4", "--output", str(folder / "one.json")]) == 0
    one = json.loads((folder / "one.json").read_text("utf-8"))
    assert one["models"][1]["rows"] != one["models"][0]["rows"]
    assert {k: v for k, v in one.items() if k != "command"} == {
        k: v for k, v in two_ranks[2].items() if k != "command"
    }


# ---------------------------------------------------------------- lm-eval's own command


@pytest.mark.slow
def test_lm_evals_command_line_says_the_same(folder, both):
    import lm_eval

    valid = folder / "data" / "valid.jsonl"
    task = {
        "include": str(Path(lm_eval.__file__).parent / "tasks/piqa/piqa.yaml"),
        "task": "piqa_local",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": str(valid)}},
        "training_split": None,
    }
    (folder / "tasks").mkdir()
    (folder / "tasks" / "piqa_local.yaml").write_text(json.dumps(task), "utf-8")
    final = folder / "run" / "final"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu"]
    command += ["--model_args", f"pretrained={final},dtype=float32", "--log_samples"]
    command += ["--tasks", str(folder / "tasks" / "piqa_local.yaml"), "--batch_size", "4"]
    env = os.environ | OFFLINE | {"HF_HOME": str(folder / "home")}
    subprocess.run(
        [*command, "--output_path", str(folder / "theirs")], env=env, check=True, timeout=300
    )
    (file,) = (folder / "theirs").rglob("samples_*.jsonl")
    samples = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    samples.sort(key=lambda sample: sample["doc_id"])
    for sample in samples:  # its file has log-probs as strings
        sample["filtered_resps"] = [
            (float(logp), greedy) for logp, greedy in sample["filtered_resps"]
        ]
    scores = piqa_scores(*both["trained"], DOCS, batch_size=4)
    for ours, sample in zip(scores, samples, strict=True):
        assert ours[2:] == row_of(sample)[2:]
        assert ours == pytest.approx(row_of(sample), rel=loose(torch.float32))


def test_the_base_model_ships_with_what_lm_eval_needs():
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in BASE_DIR.iterdir()
    }
