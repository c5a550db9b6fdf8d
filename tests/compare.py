"""How a tensor function is held against its twin in reference.py, digit by digit.

The reference sees the inputs as the dtype has rounded them, so that only the arithmetic is judged.
Values and gradients (of a weighted sum of the outputs) must agree within the bounds that
tolerances.py explains.
"""

from itertools import cycle, product

import reference
import torch
from mpmath import mpf
from tolerances import LOOSE, TIGHT

DTYPES = torch.float64, torch.float32, torch.bfloat16
PART = mpf(10) ** -20  # the step of `scale`: nothing beside a digit of float64, plenty of 50 digits
EXACT = {}  # answers found so far: mutants are asked the same questions as the right function
WEIGHTS = 1.0, -0.5, 2.0, 0.75, -1.5  # of the outputs in the weighted sum; exact in any dtype


def weights_like(out):
    flat = [w for w, _ in zip(cycle(WEIGHTS), range(out.numel()), strict=False)]
    return torch.tensor(flat, dtype=out.dtype).view(out.shape)


def gradients(fn, tensors, weights=None, **options):
    """Outputs of fn(**tensors, **options); gradient of their weighted sum by each tensor."""
    leaves = {k: t.detach().clone().requires_grad_() for k, t in tensors.items()}
    out = fn(**leaves, **options)
    outs = out if isinstance(out, tuple) else (out,)
    weights = [weights_like(o) if weights is None else weights for o in outs]
    linked = [(o, w) for o, w in zip(outs, weights, strict=True) if o.requires_grad]
    grads = [torch.zeros_like(t) for t in tensors.values()]  # of what is cut off from its inputs
    if linked:
        ends, upstream = zip(*linked, strict=True)
        grads = torch.autograd.grad(
            ends, list(leaves.values()), upstream, allow_unused=True, materialize_grads=True
        )
    return [o.detach() for o in outs], dict(zip(leaves, grads, strict=True))


def nested(tensor):
    """A tensor as a (nested list of) exact numbers."""
    return (tensor.double() if tensor.is_floating_point() else tensor).tolist()


def flatten(x):
    return [leaf for item in x for leaf in flatten(item)] if isinstance(x, (list, tuple)) else [x]


def unflatten(like, numbers):
    if isinstance(like, (list, tuple)):
        return [unflatten(item, numbers) for item in like]
    return next(numbers)


def exact(twin, numbers, constants, weights):
    """Exact outputs and gradients of one unit, and for each its scale.

    `numbers` (name -> number or nested list) are the inputs and the hyper-parameters; the scale of
    an answer is |answer| + how far it moves for one part of change in each of them.
    """
    key = twin.__module__.split(".")[-1], twin.__qualname__, repr((numbers, constants, weights))
    if key in EXACT:
        return EXACT[key]
    flat = [mpf(x) for x in flatten(list(numbers.values()))]

    def answers(at):
        def call(duals):
            named = dict(zip(numbers, unflatten(list(numbers.values()), iter(duals)), strict=True))
            return flatten(twin(**named, **constants))

        values, grads = reference.value_and_grad(call, at, weights)
        return values + grads

    found = answers(flat)
    scales = [abs(a) for a in found]
    for k, x in enumerate(flat):
        moved = answers(flat[:k] + [x * (1 + PART)] + flat[k + 1 :]) if x else found
        scales = [s + abs(b - a) / PART for s, a, b in zip(scales, found, moved, strict=True)]
    EXACT[key] = found, scales
    return found, scales


def check_number(what, actual, expected, scale, dtype, strict):
    error, floor = abs(mpf(actual) - expected), torch.finfo(dtype).tiny
    rounding = LOOSE * torch.finfo(dtype).eps * scale + floor
    assert error <= rounding, f"{what}: {actual} is not {float(expected)}, in {dtype}"
    if strict and dtype == torch.float64:
        assert error <= TIGHT * abs(expected) + floor, f"{what}: {actual} is not {float(expected)}"


def agree(fn, twin, tensors, *, units, fixed=None, dtypes=DTYPES, strict=True, **options):
    """fn equals its twin in value and gradient, in every dtype.

    units: how many leading dimensions index independent problems; the twin gets one of them at a
    time (2: one token of a (B, T) batch, 1: one row or pair, 0: all of it).
    fixed: tensors without a gradient (a mask, targets).
    strict: float64 must also be TIGHT without regard to `scale`; False where terms cancel.
    """
    fixed = fixed or {}
    for dtype in dtypes:
        inputs = {k: t.to(dtype) for k, t in tensors.items()}
        outs, grads = gradients(fn, inputs, **fixed, **options)
        shape = next(iter(inputs.values())).shape[:units]
        assert all(o.dtype == dtype and o.shape[:units] == shape for o in outs)
        weights = [weights_like(o) for o in outs]
        for unit in product(*map(range, shape)):
            numbers = {k: nested(t[unit]) for k, t in inputs.items()}
            numbers |= {k: v for k, v in options.items() if isinstance(v, float)}
            constants = {k: v for k, v in options.items() if not isinstance(v, float)}
            constants |= {k: nested(t[unit]) for k, t in fixed.items()}
            unit_weights = flatten([nested(w[unit]) for w in weights])
            found, scales = exact(twin, numbers, constants, unit_weights)
            actual = flatten([nested(o[unit]) for o in outs])
            assert len(actual) == len(unit_weights)
            actual += flatten([nested(g[unit]) for g in grads.values()])
            names = ["value"] * len(unit_weights)
            names += [f"d/d{k}" for k, t in inputs.items() for _ in range(t[unit].numel())]
            # what is left over in `found` are derivatives by the hyper-parameters
            for what, a, e, s in zip(names, actual, found, scales, strict=False):
                check_number(f"{what} at {unit}, {options}", a, e, s, dtype, strict)


def random(*shape, low=-1.0, high=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(shape, dtype=torch.float64).uniform_(low, high, generator=generator)


def column(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def mask_of(*rows):
    """Masks to look at: mask_of("110", "100")."""
    return torch.tensor([[c == "1" for c in row] for row in rows], dtype=torch.bool)


def known(formula, decimal):
    """A golden twice: as a formula to re-derive and as the number to recognise."""
    assert abs(formula - decimal) <= TIGHT * abs(formula), (formula, decimal)
    return formula
