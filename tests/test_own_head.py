"""A policy whose logits are the model's own: 16-bit weights make 16-bit logits, and from there on
nothing is rounded to less than float32."""

import pytest
import torch
from tiny_models import make_model, make_rows
from tolerances import loose

from data.trees import pack
from models.forward import Policy

SOFT_CAPPED = dict(final_logit_softcapping=2.0, head_dim=8)  # more than a linear map


@pytest.mark.parametrize("layout", ["tree", "rectangle"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_log_probs_and_entropies_are_those_of_the_logits_in_float32(dtype, temperature, layout):
    """Against float64 from the very logits that the model gave, whatever they are worth."""
    model = make_model("gemma2", dtype, **SOFT_CAPPED)
    given = []
    model.register_forward_hook(lambda module, inputs, output: given.append(output.logits))
    batch = pack(make_rows(4, seed=2), layout=layout)
    with torch.no_grad():
        logps, entropies = Policy(model, fused=False).with_entropy(batch, temperature)

    (logits,) = given
    assert logits.dtype == dtype and logps.dtype == entropies.dtype == torch.float32
    exact = (logits.flatten(0, 1)[batch.parents].double() / temperature).log_softmax(-1)
    tokens = exact[torch.arange(len(batch.targets)), batch.targets]
    entropy = -(exact.exp() * exact).sum(-1)
    assert batch.mask.sum() > 20
    for found, each in ((logps, tokens), (entropies, entropy)):
        expected = each[batch.gather]
        assert (found - expected)[batch.mask].abs().max() < loose(torch.float32) * each.abs().max()
        assert not found[~batch.mask].any()
