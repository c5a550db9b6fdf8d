"""Which token a random number draws: by the order of the vocabulary, or of the probabilities."""

import inspect

import pytest
import torch

from rollout.reward_model import ModelReward
from rollout.sample import Sampling, draw, sample

LOGITS = torch.tensor([[0.1, 0.2, 0.7]], dtype=torch.float64).log()


def drawn(uniform, **options):
    return draw(LOGITS, Sampling(1, (0,), **options), torch.tensor([uniform]).double())[0].item()


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_k": 4}], ids=str)
def test_all_tokens_stand_in_the_order_of_the_vocabulary(options):
    """top_k of the whole vocabulary or more is off: the same numbers draw the same tokens."""
    assert [drawn(u, **options) for u in (0.05, 0.15, 0.25, 0.35, 0.95)] == [0, 1, 1, 2, 2]


def test_some_stand_in_the_order_of_their_probabilities():
    assert [drawn(u, top_k=2) for u in (0.05, 0.75, 0.8, 0.99)] == [2, 2, 1, 1]  # 7 : 2
    assert [drawn(u, top_k=1) for u in (0.05, 0.99)] == [2, 2]
    assert [drawn(u, top_p=0.8) for u in (0.05, 0.75, 0.8, 0.99)] == [2, 2, 1, 1]


def test_sampling_may_take_four_times_the_tokens_that_scoring_does():
    """Nothing is kept for a backward; and this is what both take by default."""
    allowed = [inspect.signature(f).parameters["max_tokens"].default for f in (sample, ModelReward)]
    assert allowed[0] == 4 * allowed[1]


def test_borders_between_tokens_are_kept_in_float64():
    """In float32 a sum near 1 of 100,000 probabilities is off by 3e-8."""
    count = 100_000
    places = range(50_000, count, 1_000)
    numbers = torch.tensor([(place + 1e-3) / count for place in places], dtype=torch.float64)
    logits = torch.zeros(1, count).expand(len(numbers), count)
    tokens, _ = draw(logits, Sampling(1, (0,)), numbers)
    assert tokens.tolist() == list(places)
