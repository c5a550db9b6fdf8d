"""Sampling: what is drawn, with which log-probability, and that a row's company does not matter."""

import random
from types import SimpleNamespace

import pytest
import torch
from tiny_models import (
    FAMILIES,
    VOCABULARY,
    float64_throughout,
    make_model,
    make_rows,
    relative_error,
)
from tolerances import TIGHT
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from data.pocket import BASE_DIR, heldout_prompts
from data.row_table import Row
from data.trees import pack
from models.forward import Policy
from rollout.sample import Sampled, Sampling, draw, sample

THROUGH_A_MODEL = 100 * TIGHT  # 1e-10, as in test_trees.py
STOPS = tuple(range(2, 9))  # an untrained model gives each about one in 64: a row ends in 9 steps
TWELVE = Sampling(12, STOPS)
PROMPTS = [row.prompt for row in make_rows(7, seed=3)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def tokens_of(sampled: list[Sampled]) -> list[list[int]]:
    return [one.tokens for one in sampled]


def assert_same_samples(actual, expected):
    assert tokens_of(actual) == tokens_of(expected)
    assert [one.finished for one in actual] == [one.finished for one in expected]
    for one, other in zip(actual, expected, strict=True):
        error = relative_error(torch.tensor(one.logps).double(), torch.tensor(other.logps).double())
        assert error < THROUGH_A_MODEL


def recomputed(model, prompts, sampled, temperature, layout="tree"):
    """(S, T) log-probs of the sampled tokens by the forward that the losses stand on."""
    rows = [
        Row(i, list(prompt), [one.tokens], [one.finished], [1])
        for i, (prompt, one) in enumerate(zip(prompts, sampled, strict=True))
    ]
    with torch.no_grad():
        return Policy(model)(pack(rows, layout=layout), temperature)


class Counting(nn.Module):
    """Says the number after the last one it read, for sure; keeps a note of what it was given."""

    device = torch.device("cpu")
    config = LlamaConfig(vocab_size=VOCABULARY, num_hidden_layers=1)

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, input_ids, attention_mask, position_ids, past_key_values, use_cache):
        assert attention_mask.shape[0] == position_ids.shape[0] == len(input_ids)
        self.calls.append(tuple(input_ids.shape))
        logits = torch.full((*input_ids.shape, VOCABULARY), -1e4)
        logits.scatter_(-1, (input_ids[..., None] + 1) % VOCABULARY, 1e4)
        return SimpleNamespace(logits=logits)


# --- log-probabilities


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "options", [{}, dict(temperature=0.5, top_k=20, top_p=0.8)], ids=["plain", "restricted"]
)
def test_log_probs_are_those_of_the_training_forward(family, options):
    """F1, F2, F3: at the sampling temperature, over the whole vocabulary, whatever was kept."""
    sampling = Sampling(12, STOPS, **options)
    with float64_throughout():
        model = make_model(family)
        sampled = sample(model, PROMPTS, sampling, seeded())
        expected = recomputed(model, PROMPTS, sampled, sampling.temperature)
    assert len({len(one.tokens) for one in sampled}) > 2  # rows left the batch one after another
    for one, logps in zip(sampled, expected, strict=True):
        recorded = torch.tensor(one.logps, dtype=torch.float64)
        assert relative_error(recorded, logps[: len(one.tokens)]) < THROUGH_A_MODEL


def test_in_float32_the_ratio_is_one_before_any_update():
    """F1, on real text: the bound that PPO's first step is held to."""
    model = AutoModelForCausalLM.from_pretrained(BASE_DIR).eval()
    tokenizer = AutoTokenizer.from_pretrained(BASE_DIR)
    prompts = tokenizer(heldout_prompts()[:32])["input_ids"]
    sampled = sample(model, prompts, Sampling(24, (0,), temperature=0.8), seeded())
    for one, logps in zip(sampled, recomputed(model, prompts, sampled, 0.8), strict=True):
        ratio = (torch.tensor(one.logps) - logps[: len(one.tokens)]).exp()
        assert (ratio - 1).abs().max() < 1e-5


def test_half_precision_goes_through_the_softmax_in_float32():
    logits = torch.randn(5, 100, generator=seeded()).bfloat16()
    tokens, logps = draw(logits, Sampling(1, (), temperature=0.7), torch.rand(5).double())
    expected = (logits.float() / 0.7).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    assert logps.dtype == torch.float32 and torch.equal(logps, expected)
    model = make_model(dtype=torch.bfloat16)
    assert len(sample(model, PROMPTS, TWELVE, seeded())) == len(PROMPTS)


# --- the distribution


def kept_by_hand(logits, sampling):
    """Probability of each token under temperature, then top-k, then top-p: plain Python."""
    weights = {i: torch.tensor(x / sampling.temperature).exp().item() for i, x in enumerate(logits)}
    ranked = sorted(weights, key=lambda i: -weights[i])
    ranked = ranked[: sampling.top_k or len(ranked)]
    total, mass, kept = sum(weights[i] for i in ranked), 0.0, []
    for i in ranked:
        kept.append(i)
        mass += weights[i] / total
        if mass >= sampling.top_p:
            break
    total = sum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(logits))]


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("top_k", [0, 1, 2, 5, 8, 50])
@pytest.mark.parametrize("top_p", [1.0, 1e-9, 0.3, 0.6, 0.9])
def test_shares_are_exact_over_an_even_grid_of_numbers(temperature, top_k, top_p):
    """F3: the kept set is exactly that of the definition, and what is kept is in proportion."""
    logits = [0.3, -1.0, 2.0, 0.0, -5.0, 1.2, 1.1, -0.4]
    sampling = Sampling(1, (), temperature=temperature, top_k=top_k, top_p=top_p)
    n = 4000
    grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    tokens, logps = draw(torch.tensor([logits] * n, dtype=torch.float64), sampling, grid)
    counts = torch.bincount(tokens, minlength=len(logits))
    expected = torch.tensor(kept_by_hand(logits, sampling), dtype=torch.float64)
    assert ((counts - n * expected).abs() <= 1).all(), (counts, n * expected)
    assert (counts[expected == 0] == 0).all()
    whole = (torch.tensor(logits, dtype=torch.float64) / temperature).log_softmax(-1)
    assert (logps - whole[tokens]).abs().max() < TIGHT


def test_top_p_keeps_the_fewest_that_reach_it():
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=torch.float64).log()
    for top_p, kept in ((0.49, 1), (0.51, 2), (0.74, 2), (0.76, 3), (0.87, 3), (0.88, 4)):
        grid = torch.linspace(0, 1 - 1e-9, 1000, dtype=torch.float64)
        tokens, _ = draw(logits.expand(1000, 4), Sampling(1, (), top_p=top_p), grid)
        assert len(tokens.unique()) == kept


def test_random_numbers_keep_their_53_bits(monkeypatch):
    seen = []

    def recorded(logits, sampling, uniform):
        seen.append(uniform)
        return draw(logits, sampling, uniform)

    monkeypatch.setattr("rollout.sample.draw", recorded)
    sample(Counting(), [[3]], Sampling(1, (4,)), seeded())
    assert seen[0].dtype == torch.float64 and seen[0] != seen[0].float()


def test_the_ends_of_the_interval_never_draw_what_has_no_probability():
    logits = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]] * 2)
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    for options in ({}, {"top_k": 3}, {"top_p": 0.999}):
        tokens, _ = draw(logits, Sampling(1, (), **options), ends)
        assert sorted(tokens.tolist()) == [1, 2]


def chi_square(tokens, expected):
    """(statistic, its bound): five standard deviations above what chance gives."""
    counts = torch.bincount(torch.tensor(tokens), minlength=len(expected))
    assert (counts[expected == 0] == 0).all()
    common = len(tokens) * expected >= 5  # the rest as one cell
    seen = torch.cat([counts[common], counts[~common].sum()[None]])
    want = len(tokens) * torch.cat([expected[common], expected[~common].sum()[None]])
    seen, want = seen[want > 0], want[want > 0]
    freedom = len(seen) - 1
    return ((seen - want) ** 2 / want).sum(), freedom + 5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize(
    "options", [{}, dict(temperature=0.5), dict(top_k=9), dict(top_p=0.4)], ids=str
)
def test_frequencies_follow_the_model(options):
    """The whole path, streams included; the second step is judged given the first one's token."""
    sampling = Sampling(2, (), **options)
    model = make_model()
    model.lm_head.weight.data.mul_(10)  # an untrained model is nearly uniform
    sampled = sample(model, [[5, 9]] * 4000, sampling, seeded(1), max_tokens=2000)
    firsts, seconds = zip(*tokens_of(sampled), strict=True)
    most = max(set(firsts), key=firsts.count)
    after = [second for first, second in zip(firsts, seconds, strict=True) if first == most]
    for context, tokens in (([5, 9], firsts), ([5, 9, most], after)):
        logits = model(torch.tensor([context])).logits[0, -1].tolist()
        expected = torch.tensor(kept_by_hand(logits, sampling), dtype=torch.float64)
        assert len(tokens) > 100 and 0.03 < expected.max() < 0.5
        statistic, bound = chi_square(tokens, expected)
        assert statistic < bound


# --- where a response ends


def test_stop_tokens_end_a_response_and_belong_to_it():
    """F7, F8: any of several ids, at the first token too; nothing after it; the others go on."""
    model = Counting()
    prompts = [[30, 3], [7], [40, 41, 11], [5], [20]]
    sampled = sample(model, prompts, Sampling(5, (8, 12)), seeded())
    assert tokens_of(sampled) == [[4, 5, 6, 7, 8], [8], [12], [6, 7, 8], [21, 22, 23, 24, 25]]
    assert [one.finished for one in sampled] == [True, True, True, True, False]
    for one in sampled:
        assert len(one.logps) == len(one.tokens)
        assert one.logps == [0.0] * len(one.tokens)  # for sure


@pytest.mark.parametrize("stops, finished", [((4,), True), ((5,), False), ((), False)])
def test_one_new_token(stops, finished):
    (one,) = sample(Counting(), [[3]], Sampling(1, stops), seeded())
    assert (one.tokens, one.finished) == ([4], finished)


def test_rows_that_ended_leave_the_batch():
    model = Counting()
    sample(model, [[3], [6], [6, 6], [7]], Sampling(9, (8,)), seeded())
    # 3 -> 4 .. 8 takes five steps, 6 two, 7 one; then the batch is empty and nothing is computed
    assert model.calls == [(4, 2), (3, 1), (1, 1), (1, 1), (1, 1)]


def test_groups_hold_what_max_tokens_allows():
    model = Counting()
    prompts = [[9] * n for n in (1, 6, 2, 5, 30, 2)]
    sampled = sample(model, prompts, Sampling(4, (10,)), seeded(), max_tokens=20)
    # 30 is too long for any batch; 6 + 4 twice is 20; 2 + 4 three times is 18
    assert model.calls == [(1, 30), (2, 6), (3, 2)]
    assert tokens_of(sampled) == [[10]] * 6


# --- one row, whatever the others


def one_by_one(model, prompts, sampling):
    """Each prompt in a call of its own, by the number that it has among all."""
    numbered = enumerate(prompts)
    return [sample(model, [p], sampling, seeded(), prompt_index=[i])[0] for i, p in numbered]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_does_not_depend_on_its_company(family):
    """F6, B15: padding, grouping, other rows ending; a prompt alone is not padded at all."""
    with float64_throughout():
        model = make_model(family)
        together = sample(model, PROMPTS, TWELVE, seeded())
        cut = sample(model, PROMPTS, TWELVE, seeded(), max_tokens=45)
        alone = one_by_one(model, PROMPTS, TWELVE)
    assert len({len(prompt) for prompt in PROMPTS}) > 3
    assert_same_samples(cut, together)
    assert_same_samples(alone, together)


def test_ranks_draw_what_one_process_would():
    with float64_throughout():
        model = make_model()
        whole = sample(model, PROMPTS, TWELVE, seeded())
        shares = [
            sample(model, PROMPTS[r::2], TWELVE, seeded(), prompt_index=range(r, len(PROMPTS), 2))
            for r in (0, 1)
        ]
    assert_same_samples(shares[0], whole[0::2])
    assert_same_samples(shares[1], whole[1::2])


def test_pad_and_end_ids_inside_prompts_are_tokens_like_others():
    with float64_throughout():
        model = make_model(pad_token_id=2)  # pad is the end token
        prompts = [[2, 0, 7], [0], [2], [9, 2, 2, 2], [0, 0, 5, 6, 7, 0]]
        together = sample(model, prompts, Sampling(6, (2,), top_k=30), seeded())
        alone = one_by_one(model, prompts, Sampling(6, (2,), top_k=30))
        assert_same_samples(alone, together)
        expected = recomputed(model, prompts, together, 1.0)
    for one, logps in zip(together, expected, strict=True):
        recorded = torch.tensor(one.logps, dtype=torch.float64)
        assert relative_error(recorded, logps[: len(one.tokens)]) < THROUGH_A_MODEL


# --- random numbers and modes


def test_the_seed_decides_and_no_other_random_number_is_touched():
    model = make_model()
    before = torch.get_rng_state(), random.getstate()
    generator = seeded()
    first, second = (sample(model, PROMPTS, TWELVE, generator) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert sample(model, PROMPTS, TWELVE, seeded()) == first != second
    assert sample(model, PROMPTS, TWELVE, seeded(1)) != first
    # a call takes one number, whatever it samples: what follows does not depend on it
    generator = seeded()
    assert sample(model, [], TWELVE, generator) == []
    assert sample(model, PROMPTS, TWELVE, generator) == second


def test_prompts_alike_are_answered_independently():
    sampled = sample(make_model(), [[5, 6]] * 8, Sampling(4, ()), seeded())
    assert len({tuple(one.tokens) for one in sampled}) == 8


def test_the_models_generation_config_is_not_looked_at():
    """F4: Qwen's, say, would make the rollouts nearly greedy."""
    model = make_model()
    expected = sample(model, PROMPTS, TWELVE, seeded())
    settings = dict(top_p=0.1, top_k=1, temperature=0.1, repetition_penalty=5.0, min_new_tokens=12)
    model.generation_config.update(**settings, eos_token_id=9, max_new_tokens=2, do_sample=True)
    assert sample(model, PROMPTS, TWELVE, seeded()) == expected


def test_dropout_is_off_and_every_module_gets_its_mode_back():
    model = make_model("gpt2")  # dropout 0.1 in its config
    expected = sample(model, PROMPTS, TWELVE, seeded())
    model.train()
    model.transformer.h[1].eval()
    modes = [module.training for module in model.modules()]
    assert sample(model, PROMPTS, TWELVE, seeded()) == expected
    assert [module.training for module in model.modules()] == modes
    assert len(set(modes)) == 2


def test_a_checkpointed_model_samples_with_its_cache():
    """A layer in training mode for gradient checkpointing would drop the cache without a word."""
    model = make_model()
    expected = sample(model, PROMPTS, TWELVE, seeded())
    enable = getattr(model, "activation_checkpointing_enable", None)  # its name in later versions
    (enable or model.gradient_checkpointing_enable)()
    model.train()
    assert sample(model, PROMPTS, TWELVE, seeded()) == expected


def test_only_the_last_position_gets_logits_and_none_a_graph():
    model, seen = make_model(), []
    model.lm_head.register_forward_hook(
        lambda _, inputs, logits: seen.append((inputs[0].shape[1], logits.requires_grad))
    )
    sample(model, PROMPTS, TWELVE, seeded())
    assert set(seen) == {(1, False)}


# --- against transformers, and what is refused


@pytest.mark.parametrize("family", FAMILIES)
def test_top_k_one_is_the_greedy_decoding_of_generate(family):
    model = make_model(family)
    sampled = sample(model, PROMPTS, Sampling(10, (2,), top_k=1), seeded())
    for prompt, one in zip(PROMPTS, sampled, strict=True):
        ids = torch.tensor([prompt])
        options = dict(do_sample=False, max_new_tokens=10, eos_token_id=2)
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        assert one.tokens == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error(bad):
    model = make_model()
    model.lm_head.weight.data[7, 3] = bad
    with pytest.raises(
        FloatingPointError, match="^the policy's logits are NaN or infinite: nothing"
    ):
        sample(model, PROMPTS, TWELVE, seeded())


@pytest.mark.parametrize(
    "name, value",
    [("max_new_tokens", 0), ("top_k", -1), *(("top_p", x) for x in (0.0, 1.5, float("nan")))]
    + [("temperature", x) for x in (0.0, -1.0, float("nan"), float("inf"))],
)
def test_settings_without_a_meaning_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        Sampling(**{"max_new_tokens": 4, "stop_ids": (), name: value})


def test_prompts_without_tokens_and_numbers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="prompt 1 has no token"):
        sample(Counting(), [[3], []], TWELVE, seeded())
    with pytest.raises(ValueError, match="1 row numbers for 2 prompts"):
        sample(Counting(), [[3], [4]], TWELVE, seeded(), prompt_index=[0])
