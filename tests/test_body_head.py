"""The one way into a Hugging Face model: its layers and its head, also below an adapter, and what a
batch is to it."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import FAMILIES, make_head, make_model, make_rows
from tolerances import TIGHT
from torch import nn
from transformers import LlamaForCausalLM

from data.trees import pack, tree_mask
from models.forward import Policy, Scorer, attention_mask, body, head, model_inputs
from models.layout import choose_layout


def with_adapter(model, task):
    """LoRA on every linear layer, its second factor drawn too: it changes what the model says."""
    wrapped = get_peft_model(model, LoraConfig(task_type=task, target_modules="all-linear", r=2))
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.1)
    return wrapped.double().eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_head_of_body_is_the_model(family):
    model, ids = make_model(family), torch.tensor([[3, 4, 5, 6]])
    hidden = body(model)(ids).last_hidden_state
    assert torch.equal(head(model)(hidden), model(ids).logits)


def test_a_model_with_an_adapter_keeps_the_fused_head():
    """Its layers are those below the adapter's wrapper, the adapter in them."""
    plain = Policy(make_model())(pack(make_rows(3)))
    model = with_adapter(make_model(), "CAUSAL_LM")
    layout, policy, description = choose_layout(model, "auto")
    assert (layout, policy.fused, description) == ("tree", True, "token trees")
    batch = pack(make_rows(3))
    fused, own = policy(batch), Policy(model, fused=False)(batch)
    assert (fused - own).abs().max() < 1000 * TIGHT
    assert (fused - plain).abs().max() > 0.01


def test_a_reward_model_with_an_adapter_is_scored():
    model = with_adapter(make_head("sequence"), "SEQ_CLS")
    row = make_rows(1)[0]
    scores = Scorer(model)(pack([row], include_last_token=True))
    for score, response in zip(scores, row.responses, strict=True):
        ids = torch.tensor([row.prompt + response])
        hidden = model.get_base_model().model(ids).last_hidden_state[0, -1]
        assert abs(score - model.get_base_model().score(hidden)[0]) < 1000 * TIGHT


class Whole(LlamaForCausalLM):
    """A model whose layers have no name of their own."""

    base_model_prefix = ""


def test_a_model_whose_parts_cannot_be_told_apart_is_refused_by_both():
    whole = Whole(make_model().config)
    with pytest.raises(ValueError, match="^Whole has no layers apart from its head$"):
        body(whole)
    with pytest.raises(ValueError, match="^LlamaModel has no head: neither output embeddings nor"):
        head(make_model().model)


def test_it_goes_through_its_own_head_then():
    layout, policy, description = choose_layout(Whole(make_model().config).eval(), "auto")
    assert (layout, policy.fused) == ("tree", False) and "own head" in description


def test_a_defect_of_a_model_is_not_taken_for_a_refusal(monkeypatch):
    """AttributeError is a mistake in code, not an answer to the mask: it must not cost trees."""
    model = make_model(dtype=torch.float32)
    real = nn.Module.__call__

    def broken(self, *args, **options):
        if self is model.model and options["attention_mask"].ndim == 4:
            raise AttributeError("a misspelt name")
        return real(self, *args, **options)

    monkeypatch.setattr(nn.Module, "__call__", broken)
    with pytest.raises(AttributeError, match="misspelt"):
        choose_layout(model, "auto")


# --- what a batch is to a Hugging Face model ------------------------------------------------------


def fake(dtype=torch.float64, attention="sdpa", **config):
    text = SimpleNamespace(_attn_implementation=attention, **config)
    return SimpleNamespace(dtype=dtype, config=SimpleNamespace(get_text_config=lambda: text))


FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.mark.parametrize(
    "config, window",
    [
        ({}, None),
        ({"sliding_window": None, "layer_types": None}, None),
        ({"sliding_window": 3}, 3),
        ({"sliding_window": 3, "layer_types": [FULL, FULL]}, None),
        ({"sliding_window": 3, "layer_types": [FULL, SLIDING]}, {FULL: None, SLIDING: 3}),
        ({"sliding_window": 3, "layer_types": [SLIDING]}, {SLIDING: 3}),
    ],
)
def test_a_window_is_in_the_mask_of_the_layers_that_have_it(config, window):
    batch = pack(make_rows(4))

    def expected(window):
        return tree_mask(batch.example, batch.branch, batch.position_ids, window=window)

    assert not torch.equal(expected(3), expected(None))
    inputs = model_inputs(fake(**config), batch)
    mask = inputs.pop("attention_mask")
    if isinstance(window, dict):
        assert mask.keys() == window.keys()
        assert all(torch.equal(mask[kind], expected(wide)) for kind, wide in window.items())
    else:
        assert torch.equal(mask, expected(window))
    assert inputs.pop("input_ids") is batch.input_ids
    assert inputs.pop("position_ids") is batch.position_ids
    assert inputs == {"use_cache": False}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_eager_attention_adds_the_lowest_number_where_nothing_is_seen(dtype, device):
    batch = pack(make_rows(4))
    seen = attention_mask(fake(), batch)
    added = attention_mask(fake(dtype, "eager"), batch.to(torch.device(device)))
    assert (added.dtype, added.device.type, added.shape) == (dtype, device, seen.shape)
    if device == "cpu":
        assert (added[seen] == 0).all() and (added[~seen] == torch.finfo(dtype).min).all()


def test_a_rectangle_has_the_usual_mask():
    batch = pack(make_rows(4), layout="rectangle")
    mask = attention_mask(fake(sliding_window=3), batch)
    assert mask.dtype == torch.long and mask.shape == batch.input_ids.shape
    assert torch.equal(mask.bool(), batch.example >= 0) and 0 < mask.sum() < mask.numel()
