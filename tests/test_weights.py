"""Weights against config.json: what does not fit is refused by name, what is not used is said."""

import json

import pytest
import torch
from runs import QUICK, copy_base, pocket_rows, run, write_rows
from safetensors.torch import load_file, save_file
from test_loading import edit

from data.errors import BAD_DATA, NOT_FINITE, InputError
from data.row_table import Row
from data.splits import Split
from models.load import load_causal_lm, load_critic, load_scorer, load_tokenizer, parameters
from runtime.sources.reference import check_finite


@pytest.fixture
def other(tmp_path):
    return copy_base(tmp_path / "other")


def with_weights(folder, change):
    """The model directory, with `change` made to the dictionary of its weights."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})
    return folder


def load(kind, folder):
    if kind == "scorer":
        return load_scorer(str(folder), load_tokenizer(str(folder)), dtype="float32")
    return {"lm": load_causal_lm, "critic": load_critic}[kind](str(folder), dtype="float32")


KINDS = ["lm", "scorer", "critic"]


@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_config_json_does_not_count_are_refused(other, kind):
    """Transformers would train the rest of the model without a word."""
    layers = json.loads((other / "config.json").read_text("utf-8"))["num_hidden_layers"]
    edit(other, num_hidden_layers=layers - 1)
    with pytest.raises(
        InputError, match=rf"have model.layers.{layers - 1}.* which its config.json"
    ):
        load(kind, other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", [
    "model.layers.0.self_attn.q_proj.bias", "layers.1.mlp.up_proj.bias", "model.norm.bias",
])  # fmt: skip
def test_a_weight_of_a_part_that_the_model_has_is_refused(other, kind, key):
    """A config.json without attention_bias would leave out the biases of a Qwen."""
    with_weights(other, lambda weights: weights.update({key: torch.zeros(4)}))
    with pytest.raises(InputError, match=f"its weight files have {key}, which its config.json"):
        load(kind, other)


def test_parts_that_are_not_used_are_said(other):
    parts = (
        "vision_tower.layers.0.fc.weight",
        "vision_tower.layers.1.fc.weight",
        "projector.weight",
    )
    with_weights(other, lambda w: w.update({key: torch.zeros(4, 4) for key in parts}))
    said = parameters(load("lm", other))
    assert said.endswith("parameters, without projector, vision_tower.layers of its files")


@pytest.mark.parametrize("kind, key", [
    ("lm", "score.weight"), ("scorer", "lm_head.weight"), ("lm", "v_head.summary.weight"),
    ("lm", "model.layers.0.self_attn.rotary_emb.inv_freq"), ("critic", "lm_head.weight"),
    ("lm", "model.rotary_emb.inv_freq"),
])  # fmt: skip
def test_heads_of_other_tasks_and_computed_buffers_are_expected(other, kind, key):
    with_weights(other, lambda weights: weights.update({key: torch.zeros(4)}))
    assert parameters(load(kind, other)).endswith("parameters")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_weights_that_are_not_finite_are_refused_by_name(other, kind, value):
    """One of a float64 file may be infinite in float32."""
    key = "model.layers.1.mlp.up_proj.weight"

    def spoil(weights):
        weights[key] = weights[key].double()
        weights[key][3, 5] = value

    with_weights(other, spoil)
    with pytest.raises(InputError, match=f"its weight files have NaN or infinity in {key}") as e:
        load(kind, other)
    assert e.value.exit_code == BAD_DATA


def test_a_pickle_beside_safetensors_is_not_read(other):
    (other / "pytorch_model.bin").write_bytes(b"nonsense")
    assert parameters(load("lm", other)).endswith("parameters")


def test_a_reference_that_is_not_finite_is_named(other, tmp_path):
    """Its weights are finite, and what comes of them is not."""

    def enlarge(weights):
        for key in weights:
            if "layers" in key and "norm" not in key:
                weights[key] *= 1e30

    with_weights(other, enlarge)
    data = write_rows(tmp_path / "data", *pocket_rows(8, 4))
    done = run("--loss", "dpo", "--data", data, "--ref_model", other, *QUICK, cwd=tmp_path)
    assert done.code == NOT_FINITE
    assert (
        done.line == f"--ref_model {other}: its log-probs are not finite; are its weights damaged?"
    )


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_the_row_is_named_of_which_the_reference_is_not_finite(value):
    rows = [Row(i, [1], [[2], [3]], [True, True], [1, 1], where=f"x:{i}") for i in (1, 2, 3)]
    data = Split(rows)
    logps = torch.tensor([-1.0, -2.0, -3.0, value, -4.0, -5.0])
    with pytest.raises(InputError, match=f"^x:2: --ref_model m gives it a log-prob of {value}$"):
        check_finite(logps, data, "--ref_model m")
    check_finite(logps.nan_to_num(), data, "--ref_model m")
