"""Every gradient against central differences, by torch's own gradcheck, in float64.

Differences know half of the digits: a step of sqrt(TIGHT) = 1e-6 leaves an error of about 1e-10,
and sqrt(TIGHT) is what they may be off.
"""

import pytest
from cases import CASES, HEAD
from tolerances import TIGHT
from torch.autograd import gradcheck


@pytest.mark.parametrize("case", [*CASES, HEAD], ids=str)
def test_gradcheck(case):
    names, inputs = zip(*case.tensors.items(), strict=True)

    def fn(*tensors):
        return case.fn(**dict(zip(names, tensors, strict=True)), **case.fixed, **case.options)

    step = TIGHT**0.5
    leaves = [t.clone().requires_grad_() for t in inputs]
    assert gradcheck(fn, leaves, eps=step, atol=step, rtol=step)
