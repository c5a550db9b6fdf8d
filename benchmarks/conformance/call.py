"""Call one function of an implementation on one case, in torch or in NumPy.

Both ways give outputs and gradients as float64 NumPy arrays, which hold every number of the
narrower dtypes. A gradient is None where the implementation's result does not depend on the input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .load import Array, Case

EPSILONS = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7}
TINY = {"float64": 2.0**-1022, "float32": 2.0**-126, "bfloat16": 2.0**-126}

Gradients = dict[str, Array | None]
# (implementation, case, dtype) -> outputs in order, gradients (None: it offers none at all)
Caller = Callable[[Any, Case, str], tuple[list[Array], Gradients | None]]


class WrongResultError(Exception):
    """What came back is no answer: another number of outputs, an argument changed."""


def caller(implementation: Any) -> tuple[Caller, tuple[str, ...]]:
    """How to call it, and the dtypes that can be asked for."""
    arrays = getattr(implementation, "ARRAYS", "torch")
    if arrays == "torch":
        return with_torch, ("float64", "float32", "bfloat16")
    if arrays == "numpy":
        return with_numpy, ("float64", "float32")  # NumPy has no bfloat16
    raise ValueError(f'ARRAYS = {arrays!r} must be "torch" or "numpy"')


def with_numpy(implementation: Any, case: Case, dtype: str) -> tuple[list[Array], Gradients | None]:
    inputs = {
        name: x.astype(dtype) if x.dtype == np.float64 else x.copy()
        for name, x in case.inputs.items()
    }
    before = {name: x.copy() for name, x in inputs.items()}
    with np.errstate(all="ignore"):
        result = getattr(implementation, case.function)(**inputs, **case.options)
        outputs = _outputs(result, case)
        gradient = getattr(implementation, f"{case.function}_grad", None)
        gradients: Gradients | None = None
        if gradient is not None and case.gradients:
            up = [c.astype(dtype) for c in case.cotangents]
            found = gradient(tuple(up) if len(up) > 1 else up[0], **inputs, **case.options)
            gradients = {name: _wide(found.get(name)) for name in case.gradients}
    _unchanged(before, inputs)
    return [np.asarray(out, dtype=np.float64) for out in outputs], gradients


def with_torch(implementation: Any, case: Case, dtype: str) -> tuple[list[Array], Gradients | None]:
    import torch

    inputs = {
        name: torch.from_numpy(x).to(getattr(torch, dtype) if x.dtype == np.float64 else None)
        for name, x in case.inputs.items()
    }
    inputs = {name: x.detach().clone() for name, x in inputs.items()}
    before = {name: x.double().numpy().copy() for name, x in inputs.items()}
    leaves = {name: inputs[name].requires_grad_() for name in case.gradients}
    result = getattr(implementation, case.function)(**inputs, **case.options)
    outputs = _outputs(result, case)
    linked = [
        (out, torch.from_numpy(up).to(out.dtype).reshape(out.shape))
        for out, up in zip(outputs, case.cotangents, strict=True)
        if out.requires_grad and out.shape == up.shape
    ]
    gradients: Gradients = dict.fromkeys(leaves)
    if linked and leaves:
        ends, ups = zip(*linked, strict=True)
        found = torch.autograd.grad(ends, list(leaves.values()), ups, allow_unused=True)
        gradients = {
            name: None if g is None else g.double().numpy()
            for name, g in zip(leaves, found, strict=True)
        }
    _unchanged(before, {name: x.detach().double().numpy() for name, x in inputs.items()})
    return [out.detach().double().numpy() for out in outputs], gradients


def _outputs(result: Any, case: Case) -> list[Any]:
    outputs = list(result) if isinstance(result, (tuple, list)) else [result]
    if len(outputs) != len(case.outputs):
        names = ", ".join(case.outputs)
        raise WrongResultError(f"returned {len(outputs)} results, expected {names}")
    return outputs


def _unchanged(before: dict[str, Any], after: dict[str, Any]) -> None:
    for name, x in before.items():
        if not np.array_equal(x, after[name], equal_nan=x.dtype.kind == "f"):
            raise WrongResultError(f"it changed its argument {name}")


def _wide(x: Any) -> Array | None:
    return None if x is None else np.asarray(x, dtype=np.float64)
