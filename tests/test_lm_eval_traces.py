"""lm-eval leaves no trace: a run that asks for it has the bytes of one that does not."""

import json
import logging
import os
import random

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from lm_evals import DOCS, write_docs
from runs import QUICK, metrics, no_model, pocket_rows, random_llama, read, run, write_rows
from small_tokenizers import gpt2

from data import errors
from models.load import load_causal_lm, load_tokenizer
from runtime.sources.lm_harness import piqa_scores, untouched


@pytest.fixture(scope="module")
def padless(tmp_path_factory):
    """A model whose tokenizer has no pad token, for which lm-eval would set one."""
    tokenizer = gpt2()
    tokenizer.pad_token = None
    folder = random_llama(tmp_path_factory.mktemp("model") / "llama", tokenizer)
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.pad_token is None
    return load_causal_lm(str(folder), dtype="float32"), tokenizer, folder


def state(model, tokenizer, folder):
    """Everything that a training run goes on with."""
    tokenizer.save_pretrained(folder)
    _, numbers, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (np.asarray(numbers).tolist(), rest),
        "torch": torch.get_rng_state().tolist(),
        "modes": [module.training for module in model.modules()],
        "weights": {k: (id(v), v.tolist()) for k, v in model.named_parameters()},
        "config": (model.config.to_dict(), model.generation_config.to_dict()),
        "tokenizer": {f.name: f.read_bytes() for f in folder.iterdir()},
        "environment": dict(os.environ),
        "levels": (logging.root.level, logging.getLogger("lm_eval").level),
        "handlers": list(logging.root.handlers),
        "numerics": (
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.allow_tf32,
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
        ),
        "folder": os.getcwd(),
    }


def test_a_call_changes_nothing(padless, tmp_path, capfd):
    model, tokenizer, _ = padless
    model.train()
    model.model.layers[0].eval()
    before = state(model, tokenizer, tmp_path)
    assert len(piqa_scores(model, tokenizer, DOCS, accelerator=Accelerator(cpu=True))) == len(DOCS)
    after = state(model, tokenizer, tmp_path)
    for name, value in before.items():
        assert after[name] == value, name
    assert capfd.readouterr() == ("", "")


def test_even_a_call_that_fails_changes_nothing(padless, tmp_path):
    model, tokenizer, _ = padless
    model.train()
    before = state(model, tokenizer, tmp_path)
    with pytest.raises(RuntimeError, match="no such luck"), untouched(model):
        model.eval()
        random.random()
        np.random.rand()
        torch.rand(1)
        os.environ["HF_XET_HIGH_PERFORMANCE"] = "of course"
        os.environ.pop("PATH")
        logging.getLogger("lm_eval").setLevel(logging.DEBUG)
        during = state(model, tokenizer, tmp_path)
        raise RuntimeError("no such luck")
    after = state(model, tokenizer, tmp_path)
    changed = {"python", "numpy", "torch", "modes", "environment", "levels"}
    assert {name for name in before if during[name] != before[name]} == changed
    for name, value in before.items():
        assert after[name] == value, name


@pytest.mark.parametrize("flags", [
    ("--loss", "dpo", "--eval_every", 1),
    ("--loss", "orpo", "--gradient_checkpointing"),
    ("--loss", "sft", "--mixed_precision", "bf16"),
], ids=lambda flags: flags[1])  # fmt: skip
def test_a_run_with_lm_eval_has_the_bytes_of_one_without(tmp_path, padless, flags):
    data = write_docs(tmp_path / "data")
    flags = ["--data", data, "--model", padless[2], *QUICK, *flags]
    for name, more in (("plain", ()), ("scored", ("--lm_eval",))):
        done = run(*flags, "--output_dir", tmp_path / name, *more)
        assert done.code == 0 and done.err == "", done.err
    plain, scored = tmp_path / "plain", tmp_path / "scored"
    files = {f.name for f in (plain / "final").iterdir()}
    assert files == {f.name for f in (scored / "final").iterdir()}
    assert {"model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= files
    for name in files - {"README.md"}:  # it quotes the command
        assert (plain / "final" / name).read_bytes() == (scored / "final" / name).read_bytes(), name

    rows = [row for part in metrics(scored) for row in part]
    evaluations = [row for row in rows if "eval/lm_eval/acc" in row]
    assert len(evaluations) == (4 if "--eval_every" in flags else 2)
    dropped = {"seconds", "eval/lm_eval/acc", "eval/lm_eval/acc_norm"}
    assert without(dropped, rows) == without({"seconds"}, [r for p in metrics(plain) for r in p])
    for when in ("before", "after"):
        found = read(scored, "summary.json")[when]
        expected = read(plain, "summary.json")[when]
        assert {k: v for k, v in found.items() if not k.startswith("lm_eval")} == expected
        if "bf16" not in flags:
            assert found["lm_eval/acc"] == expected["accuracy"]
            assert found["lm_eval/acc_norm"] == expected["accuracy_norm"]


def without(keys, rows):
    return [json.dumps({k: v for k, v in row.items() if k not in keys}) for row in rows]


# ---------------------------------------------------------------- what it does not go with


@pytest.mark.parametrize("loss", ["reward", "ppo"])
def test_losses_without_log_probs_of_given_responses_refuse_it(tmp_path, loss):
    done = run("--loss", loss, "--lm_eval", "--output_dir", tmp_path / "out", before=no_model)
    assert done.code == errors.USAGE
    assert done.line.startswith(f"--lm_eval does not go with --loss {loss}: ")
    assert not (tmp_path / "out").exists()


def test_rows_that_are_not_piqas_are_refused_before_a_model_is_loaded(tmp_path):
    train, valid = pocket_rows(8, 4)
    valid[2] |= {"prompt": "Why?"}
    data = write_rows(tmp_path / "data", train, valid)
    flags = ["--data", data, "--output_dir", tmp_path / "out"]
    done = run("--loss", "dpo", "--lm_eval", *flags, before=no_model)
    assert done.code == errors.BAD_DATA
    assert done.line.startswith(f"{data}/valid.jsonl:3:prompt: not worded 'Question: ...")
    assert "goal, sol1, sol2 and label" in done.line
