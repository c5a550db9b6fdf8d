"""Edges of losses/ where a change of one sign, bound or device was once seen by no other test."""

import math
from types import SimpleNamespace

import pytest
import torch
from compare import column, gradients, mask_of, random
from rollouts import PositionCritic, make_policy
from test_logprobs import TARGETS, head, logits_in, naive
from tiny_models import flat_grad, make_model, make_rows, relative_error
from tolerances import TIGHT, assert_close, loose
from torch import nn

from data.row_table import Row
from data.trees import pack
from losses import (
    dpo_loss,
    gae,
    log_odds,
    masked_mean,
    masked_sum,
    masked_whiten,
    ppo_policy_loss,
    token_logprobs,
)
from losses import logprobs as logprobs_module
from losses.base import accumulation_dtype, sum_and_count
from losses.logprobs import token_entropy
from models.forward import ActorCritic, Policy, attention_mask, model_inputs

THROUGH_A_MODEL = 100 * TIGHT  # as in test_trees.py

# --- reductions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("x", [column(1, 2, 3), column(1, 2, 3).expand(2, 2, 3)], ids=["1d", "3d"])
def test_reductions_are_over_the_last_dimension_of_any_shape(x):
    mask = mask_of("110")[0].expand(x.shape)
    assert masked_sum(x, mask).unique().tolist() == [3]
    assert masked_mean(x, mask).unique().tolist() == [1.5]


def test_metrics_are_summed_in_float64_where_there_is_one():
    assert (
        accumulation_dtype(torch.device("cpu")) == torch.float64
        and accumulation_dtype(torch.device("mps")) == torch.float32
    )
    ones = torch.ones(4099, dtype=torch.bfloat16)  # whose own sum of 4099 would be 4096
    assert [x.item() for x in sum_and_count(ones)] == [4099, 4099]
    assert sum_and_count(ones)[0].dtype == torch.float64


def test_metrics_stay_on_the_device_of_their_values():
    values = torch.ones(3, device="meta")
    for found in (sum_and_count(values), sum_and_count(values, values > 0)):
        assert [x.device.type for x in found] == ["meta", "meta"]


# --- advantages, odds, ratios --------------------------------------------------------------------


def test_advantages_of_no_tokens():
    nothing = torch.zeros(3, 0, dtype=torch.float64)
    advantages, returns = gae(nothing, nothing, nothing.bool())
    assert advantages.shape == returns.shape == (3, 0) and advantages.dtype == torch.float64


def test_a_single_token_is_its_own_mean():
    for shift_mean, expected in ((True, 0.0), (False, 3.0)):
        whitened = masked_whiten(column(3.0, 9.0), mask_of("10")[0], shift_mean=shift_mean)
        assert_close(whitened, [expected, 0.0])


def test_odds_on_either_side_of_one_half():
    """Both ways to write log(1 - p), where they meet: p = 1/2 has log-odds 0."""
    a = column(math.log(0.5), math.log(0.25), math.log(0.75))
    assert_close(log_odds(a), [0.0, -math.log(3), math.log(3)], scale=[1.0] * 3)


def test_a_ratio_stops_just_below_the_largest_number():
    """And so does what a clip does not bound: a response that was bad and is now near certain."""
    far = {"logps": torch.zeros(1, 1), "old_logps": torch.full((1, 1), -100.0)}
    loss = ppo_policy_loss(**far, advantages=-torch.ones(1, 1), mask=mask_of("1"))
    largest = torch.finfo(torch.float32).max
    # the exponent is about 87, so its rounding moves the number by 87 times as much
    assert loss.item() == pytest.approx(largest / math.e, rel=87 * loose(torch.float32))


@pytest.mark.parametrize("eps", [-0.1, 0.5, math.nan])
def test_a_smoothing_without_a_meaning_is_refused_by_the_function_too(eps):
    one = column(0.0)
    with pytest.raises(ValueError, match="label_smoothing"):
        dpo_loss(one, one, one, one, label_smoothing=eps)


# --- the head ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"hidden": random(5, 3, 1)},
        {"hidden": random(5)},
        {"weight": random(4, 3, 1)},
        {"weight": random(3)},
        {"targets": TARGETS[:, None]},
        {"bias": random(4, 1)},
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"chunk_size": -1},
    ],
    ids=lambda w: next(iter(w)),
)
def test_a_head_that_does_not_fit_is_refused_before_anything_is_computed(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        token_logprobs(**head() | {"targets": TARGETS} | wrong)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_temperature_reaches_value_and_gradient(temperature):
    options = dict(targets=TARGETS, temperature=temperature)
    (expected,), slopes = gradients(naive, head(), **options)
    for chunk_size in (2, 5):
        (out,), grads = gradients(token_logprobs, head(), **options, chunk_size=chunk_size)
        assert_close(out, expected)
        for name, slope in slopes.items():
            assert_close(grads[name], slope, scale=torch.full_like(slope, 10.0))
    cold = {k: t / temperature if k != "hidden" else t for k, t in head().items()}
    assert_close(token_entropy(**head(), temperature=temperature), token_entropy(**cold))


@pytest.mark.parametrize("chunk_size, forward, backward", [(6, 1, 0), (5, 1, 0), (4, 2, 2)])
def test_logits_of_one_chunk_are_computed_once(monkeypatch, chunk_size, forward, backward):
    """Of several, once forward and once backward: no more than one chunk is ever kept."""
    calls, right = [], logprobs_module._logits
    monkeypatch.setattr(logprobs_module, "_logits", lambda *a: calls.append(0) or right(*a))
    leaves = {k: t.requires_grad_() for k, t in head().items()}
    out = token_logprobs(**leaves, targets=TARGETS, chunk_size=chunk_size)
    assert len(calls) == forward
    out.sum().backward()
    assert len(calls) == forward + backward


def test_a_bfloat16_head_adds_its_chunks_up_in_float32():
    """600 tokens of one gradient: a bfloat16 sum would stop growing at 256 of them."""
    rows = logits_in([0.0, 0.0]) | {"bias": column(0.0, 0.0)}
    leaves = {k: t.bfloat16().requires_grad_() for k, t in rows.items()}
    hidden = torch.ones(600, 2, dtype=torch.bfloat16)
    targets = torch.zeros(600, dtype=torch.long)
    out = token_logprobs(hidden, leaves["weight"], targets, bias=leaves["bias"], chunk_size=1)
    out.sum().backward()
    for name, expected in (("weight", [[300, 300], [-300, -300]]), ("bias", [300, -300])):
        grad = leaves[name].grad
        assert grad.dtype == torch.bfloat16
        assert (grad.double() - torch.tensor(expected)).abs().max() <= loose(torch.bfloat16)


@pytest.mark.parametrize("needed", [(True, False, False), (False, True, True)])
def test_only_the_gradients_that_are_needed_are_computed_each_in_its_inputs_dtype(needed):
    inputs = torch.ones(2, 3).bfloat16(), torch.ones(4, 3).bfloat16(), torch.ones(4).bfloat16()
    hidden, weight, bias = inputs
    saved = hidden, weight, torch.tensor([0, 1]), bias, None
    asked = needed[0], needed[1], False, needed[2], False, False
    ctx = SimpleNamespace(
        saved_tensors=saved, needs_input_grad=asked, temperature=1.0, chunk_size=1
    )
    found = logprobs_module._gradients(ctx, torch.ones(2))
    for gradient, wanted, given in zip((*found[:2], found[3]), needed, inputs, strict=True):
        assert (gradient is not None) == wanted
        assert gradient is None or (gradient.shape, gradient.dtype) == (given.shape, given.dtype)


# --- the forward ---------------------------------------------------------------------------------


def test_a_bias_of_the_head_is_part_of_the_logits():
    """Untrained models have a bias of 0, which would not show that it is left out."""
    model, batch = make_model("phi, whose head has a bias"), pack(make_rows(3))
    nn.init.normal_(model.get_output_embeddings().bias)
    found = []
    for fused in (True, False):
        model.zero_grad()
        logps, entropies = Policy(model, fused=fused).with_entropy(batch, 0.7)
        (logps.sum() + entropies.sum()).backward()
        found.append((logps, entropies, flat_grad(model)))
    for ours, models_own in zip(*found, strict=True):
        assert relative_error(ours, models_own) < THROUGH_A_MODEL


def test_a_head_need_not_have_a_bias():
    model, batch = make_model("gpt_neox"), pack(make_rows(2))
    expected = Policy(model)(batch)
    bare = SimpleNamespace(weight=model.get_output_embeddings().weight)
    model.get_output_embeddings = lambda: bare
    assert torch.equal(Policy(model)(batch), expected)


def test_no_entropy_is_computed_where_none_is_asked_for(monkeypatch):
    monkeypatch.setattr("models.forward.token_entropy", lambda *a, **o: pytest.fail("computed"))
    model, batch = make_model("gpt_neox"), pack(make_rows(2))
    for fused in (True, False):
        policy = Policy(model, fused=fused)
        logps, entropies = policy.with_entropy(batch, 1.0, entropy=False)
        assert logps.shape == entropies.shape == policy(batch).shape and not entropies.any()


def test_a_half_precision_model_without_its_head_apart_goes_through_float32_too():
    model, batch = make_model("gpt_neox", torch.bfloat16), pack(make_rows(2))
    logps = Policy(model, fused=False)(batch)
    assert logps.dtype == torch.float32
    assert relative_error(logps, Policy(model)(batch)) < loose(torch.float32)


def test_a_window_that_no_layer_uses_is_not_in_the_mask():
    """Qwen 2's config names a window and, layer by layer, that all see everything."""
    model, batch = make_model("llama"), pack(make_rows(2))
    everything = attention_mask(model, batch)
    model.config.sliding_window, model.config.layer_types = 1, ["full_attention"] * 2
    assert torch.equal(attention_mask(model, batch), everything)


def test_no_key_or_value_is_kept_for_sampling_while_training():
    assert model_inputs(make_model("llama"), pack(make_rows(2)))["use_cache"] is False


@pytest.mark.parametrize("family", ["gpt_neox", "mistral with a window"])
def test_eager_attention_is_given_the_tree_as_what_it_adds(family):
    rows = make_rows(4)
    logps = [
        Policy(make_model(family, torch.float32, attn_implementation=attention))(pack(rows))
        for attention in ("sdpa", "eager")
    ]
    assert relative_error(logps[1], logps[0]) < 10 * loose(torch.float32)


def test_masks_are_on_the_device_and_in_the_dtype_of_the_model():
    text = SimpleNamespace(_attn_implementation="eager")
    model = SimpleNamespace(
        config=SimpleNamespace(get_text_config=lambda: text), dtype=torch.float16
    )
    batch = pack([Row(0, [5], [[6, 7], [8, 9]], [True, True], [1, 1])])
    mask = attention_mask(model, batch)
    assert mask.dtype == torch.float16
    assert mask.unique().tolist() == [torch.finfo(torch.float16).min, 0]
    assert attention_mask(model, batch.to(torch.device("meta"))).device.type == "meta"


@pytest.mark.parametrize("leaves, after", [(True, [4, 1]), (False, [0, 0])])
def test_values_are_of_the_states_before_every_token_and_after_the_last(leaves, after):
    """The critic tells positions. Entropies cost a pass of their own: only where asked for."""
    rows = [Row(0, [3, 4, 5], [[6, 7]], [True], [1]), Row(1, [3], [[4]], [True], [1])]
    critic, policy = PositionCritic(make_policy()), Policy(make_policy())
    found = ActorCritic(policy, critic, temperature=0.7)(pack(rows, include_last_token=leaves))
    assert found.values.tolist() == [[2, 3], [0, 0]] and found.last_values.tolist() == after
    assert not found.entropies.any()
    asked = ActorCritic(policy, critic, temperature=0.7, entropy=True)(
        pack(rows, include_last_token=leaves)
    )
    assert asked.entropies.bool().tolist() == [[True, True], [True, False]]
    assert torch.equal(asked.logps, found.logps)


def test_responses_of_one_token_have_a_state_after_them_too():
    module = ActorCritic(Policy(make_policy()), PositionCritic(make_policy()), temperature=1.0)
    assert module(pack([Row(0, [3, 4], [[5]], [True], [1])])).last_values.tolist() == [0]
