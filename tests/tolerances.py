"""The only two tolerances of the test-suite; every other bound is made of them.

TIGHT judges float64, relative to the exact answer.  A loss is a few dozen roundings of 1e-16
away from its inputs, and ordinary inputs amplify them by some tens; 1e-12 leaves that room and
nothing more: no wrong formula agrees to twelve digits on random inputs.

LOOSE judges any dtype, in epsilons of that dtype, relative to `scale`: how far the exact answer
moves when every number that goes in moves by one part (compare.py works it out).  It says that
the answer is the exact answer to a question whose inputs differ in the last digits: the most one
can ask of floating point, and, unlike a plain relative error, still true where terms cancel.
8 epsilons is 1.8e-15 in float64, 1e-6 in float32 and 6% in bfloat16 (which has three digits).
"""

import torch

TIGHT = 1e-12
LOOSE = 8


def loose(dtype: torch.dtype) -> float:
    """LOOSE as a plain relative error in `dtype`."""
    return LOOSE * torch.finfo(dtype).eps


def tolerance(dtype: torch.dtype) -> float:
    """What an answer in `dtype` may be off, relative to its scale."""
    return TIGHT if dtype == torch.float64 else loose(dtype)


def assert_close(actual, expected, scale=None) -> None:
    """actual == expected up to `tolerance` of actual's dtype; shapes must be equal.

    `expected` may be a number, a nested list or a tensor.  `scale` (default: |expected|) is what
    the error is relative to: give the size of the terms where the answer is a small difference.
    """
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    scale = expected.abs() if scale is None else torch.as_tensor(scale, dtype=torch.float64)
    bound = tolerance(actual.dtype) * scale + torch.finfo(actual.dtype).tiny
    error = (actual.detach().to(torch.float64) - expected).abs()
    # <= is False for nan, and inf - inf is nan: neither passes by accident
    assert bool((error <= bound).all()), f"error {error}, allowed {bound}\n{actual}\n{expected}"


def assert_same(actual, expected) -> None:
    """The same bits (and the same shape and dtype); -0.0 equals 0.0."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    assert bool((actual == expected).all()), (actual, expected)
