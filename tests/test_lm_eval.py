"""Held-out accuracy is lm-eval's, row by row: acc and acc_norm of its own PIQA task."""

import copy
import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from tolerances import loose

from data.batches import cover
from data.encode import encode_records
from data.pocket import BASE_DIR
from data.records import load_data
from losses import LOSSES
from losses.base import masked_sum
from losses.forward import Policy
from runtime.heldout import evaluate
from runtime.inputs import Rows
from runtime.models import load_causal_lm, load_tokenizer

# PIQA's shape, odd spaces and all: lm-eval strips nothing and counts the solution's characters.
ROWS = [
    ("carry soup to the table", "pour it into a bowl", "pour it into a sieve", 0),
    ("keep a door open", "use a brick", " use a heavy brick and a rope ", 1),
    ("dry a wet floor.", "wipe it with a spoon", "wipe it", 1),
    ("tie a parcel ", "use string", "use a very long and quite rigid plank of wood", 0),
    ("cut bread", "with a knife.", "with a knife", 1),
    ("see through a lid", "take glass", "take clay", 0),
]


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("piqa") / "valid.jsonl"
    names = ("goal", "sol1", "sol2", "label")
    lines = [json.dumps(dict(zip(names, row, strict=True))) for row in ROWS]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def lm_eval_samples(rows_file, tmp_path_factory):
    """What lm-eval's own task definition says of every row, with only the data set replaced."""
    import lm_eval
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    task = load_yaml(Path(lm_eval.__file__).parent / "tasks/piqa/piqa.yaml")
    files = {"data_files": {"validation": str(rows_file)}}
    cache = str(tmp_path_factory.mktemp("cache"))
    task |= dict(dataset_path="json", training_split=None, num_fewshot=0)
    task["dataset_kwargs"] = files | {"cache_dir": cache}
    model, tokenizer = load_causal_lm("pocket", dtype="float32"), load_tokenizer("pocket")
    harness = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=4)
    loaded = TaskManager(include_defaults=False).load([task])
    results = evaluate(lm=harness, task_dict=loaded, limit=None, log_samples=True)
    return sorted(results["samples"]["piqa"], key=lambda sample: sample["doc_id"])


def test_log_likelihoods_equal_lm_evals(rows_file, lm_eval_samples):
    records, _, _ = load_data(str(rows_file), str(rows_file), pairs=True)
    data = Rows(encode_records(records, load_tokenizer("pocket")).rows)
    policy = Policy(load_causal_lm("pocket", dtype="float32"))
    (plan,) = cover(data.lengths, 1, 100)
    assert len(plan) > 1
    for members in plan:
        batch = data.batch(members, torch.device("cpu"))
        ours = masked_sum(policy(batch), batch.text_mask()).view(-1, 2)
        for pair, i in zip(ours.tolist(), members, strict=True):
            theirs = [response[0][0] for response in lm_eval_samples[i]["resps"]]
            label = ROWS[i][3]
            expected = [float(theirs[label]), float(theirs[1 - label])]
            assert pair == pytest.approx(expected, rel=10 * loose(torch.float32))


def test_accuracies_equal_lm_evals(rows_file, lm_eval_samples):
    records, _, _ = load_data(str(rows_file), str(rows_file), pairs=True)
    rows = encode_records(records, load_tokenizer("pocket")).rows
    policy, loss = Policy(load_causal_lm("pocket", dtype="float32")), LOSSES["sft"]
    for i, sample in enumerate(lm_eval_samples):
        found = evaluate(Accelerator(cpu=True), policy, loss, loss.config(), Rows([rows[i]]), 4096)
        assert (found["accuracy"], found["accuracy_norm"]) == (sample["acc"], sample["acc_norm"])
    accuracies = {(s["acc"], s["acc_norm"]) for s in lm_eval_samples}
    assert len(accuracies) > 1, "rows on which both always agree would show little"


def test_the_base_model_ships_with_what_lm_eval_needs():
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in BASE_DIR.iterdir()
    }
