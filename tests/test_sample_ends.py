"""Rows that ended stay in the batch until the sampler looks: what they draw there is cut off."""

import pytest
import torch
from tiny_models import make_model, make_rows

from rollout.sample import Sampling, sample

PROMPTS = [row.prompt for row in make_rows(7, seed=3)]
SAMPLING = Sampling(13, tuple(range(2, 9)))  # about one of eight tokens drawn ends a response


def drawn():
    generator = torch.Generator().manual_seed(0)
    return sample(make_model("llama").double(), PROMPTS, SAMPLING, generator)


@pytest.mark.parametrize("look_every", [2, 5, 100])
def test_how_often_the_sampler_looks_changes_no_response(monkeypatch, look_every):
    expected = drawn()
    assert len({len(one.tokens) for one in expected}) > 3
    assert len({one.finished for one in expected}) == 2
    monkeypatch.setattr("rollout.sample.LOOK_EVERY", {"cpu": look_every})
    found = drawn()
    for one, other in zip(found, expected, strict=True):
        assert (one.tokens, one.finished) == (other.tokens, other.finished)
        assert one.logps == pytest.approx(other.logps, rel=1e-10)
