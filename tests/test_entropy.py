"""token_entropy: chunk by chunk what minus the sum of p log p is over all of them."""

from functools import partial
from math import log

import pytest
import torch
from compare import agree, gradients
from reference import token_entropy as exact_entropy
from test_logprobs import V, head, logits_in
from tolerances import assert_close

from losses.logprobs import token_entropy


@pytest.mark.parametrize("chunk_size", [1, 2, 5, 99])
def test_entropy_and_its_gradient_are_those_of_the_twin_in_any_number_of_chunks(chunk_size):
    def twin(hidden, weight, bias=(0.0,) * V, temperature=1):
        return [exact_entropy(h, weight, bias, temperature) for h in hidden]

    full, dtypes = head(), (torch.float64, torch.float32)
    for tensors, temperature in ((full, 0.7), ({k: full[k] for k in ("hidden", "weight")}, 1.0)):
        fn = partial(token_entropy, chunk_size=chunk_size)
        agree(fn, twin, tensors, units=0, dtypes=dtypes, temperature=temperature)


@pytest.mark.parametrize("chunk_size", [1, 2, 3])
def test_entropy_from_certain_to_uniform(chunk_size):
    """Shares 1/2, 1/4, 1/4; all alike; one far above the others, where p log p is 0 x -20000."""
    rows = logits_in([log(2), 0.0, 0.0], [7.0, 7.0, 7.0], [1e4, -1e4, 0.0])
    (out,), grads = gradients(token_entropy, rows, chunk_size=chunk_size)
    assert_close(out, [1.5 * log(2), log(3), 0.0])
    assert grads["hidden"].isfinite().all() and not grads["hidden"][2].any()
    assert token_entropy(**head(n=0), chunk_size=chunk_size).shape == (0,)
