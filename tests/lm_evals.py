"""Rows in PIQA's form, and what lm-eval says of them when it is called the way its manual says."""

import copy
import json
from pathlib import Path

from data.encode import encode_records
from data.records import load_heldout
from data.splits import Split
from models.load import load_causal_lm, load_tokenizer

NAMES = ("goal", "sol1", "sol2", "label")
# Odd spaces and all: lm-eval strips nothing and counts the solution's characters.
ROWS = [
    ("carry soup to the table", "pour it into a bowl", "pour it into a sieve", 0),
    ("keep a door open", "use a brick", " use a heavy brick and a rope ", 1),
    ("dry a wet floor.", "wipe it with a spoon", "wipe it", 1),
    ("tie a parcel ", "use string", "use a very long and quite rigid plank of wood", 0),
    ("cut bread", "with a knife.", "with a knife", 1),
    ("see through a lid", "take glass", "take clay", 0),
    ("How do I keep 'it' \"dry\"?\n", "under {{a}} tin — roof", "in\tthe rain", 0),
]
DOCS = [dict(zip(NAMES, row, strict=True)) for row in ROWS]


def write_docs(folder, docs=DOCS):
    """A folder with a training and a validation file of PIQA rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "valid"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(d) + "\n" for d in docs), "utf-8")
    return folder


def heldout(folder, tokenizer):
    """The validation rows as the training loop evaluates them."""
    return Split(encode_records(load_heldout(str(folder))[0], tokenizer).rows)


def models(*names):
    """(model, tokenizer) of each."""
    return [(load_causal_lm(n, dtype="float32"), load_tokenizer(n)) for n in map(str, names)]


def as_the_manual_says(model, tokenizer, file, cache):
    """lm-eval's results and samples: its task definition with a json file for a data set."""
    import lm_eval
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    task = load_yaml(Path(lm_eval.__file__).parent / "tasks/piqa/piqa.yaml")
    files = {"data_files": {"validation": str(file)}, "cache_dir": str(cache)}
    task |= {"dataset_path": "json", "training_split": None, "num_fewshot": 0}
    task["dataset_kwargs"] = files
    harness = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=4)
    loaded = TaskManager(include_defaults=False).load([task])
    found = evaluate(lm=harness, task_dict=loaded, limit=None, log_samples=True)
    samples = sorted(found["samples"]["piqa"], key=lambda sample: sample["doc_id"])
    return found["results"]["piqa"], samples


def row_of(sample):
    """A sample of lm-eval as (log-prob of sol1, of sol2, acc, acc_norm)."""
    (first, _), (second, _) = sample["filtered_resps"]
    return first, second, sample["acc"], sample["acc_norm"]
