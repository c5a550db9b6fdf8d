"""The one way into a Hugging Face model: its layers and its head, also below an adapter."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import FAMILIES, make_head, make_model, make_rows
from tolerances import TIGHT
from torch import nn
from transformers import LlamaForCausalLM

from data.trees import pack
from models.forward import Policy, Scorer, body, head
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
