"""In which precision this machine multiplies faster, bfloat16 or float32.

By what the processor says of itself, and a timing that takes less than a second: never by its name.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch.nn.functional import linear

GAIN = 1.3  # so much faster it must be: casts, and what stays in float32, take some of it back
NARROWEST = 256  # hidden size; below, a forward is not made of matrix products
TOKENS, ROUNDS = 256, 5


class Precision(NamedTuple):
    name: str  # Accelerate's: no, bf16
    reason: str


def choose_precision(device: torch.device, hidden_size: int, dtype: str) -> Precision:
    """For a model of this hidden size, whose weights have this dtype."""
    if dtype != "float32":
        return Precision("no", f"--dtype {dtype}")
    if hidden_size < NARROWEST:
        return Precision("no", "the model is small")
    if not has_bfloat16(device):
        return Precision("no", f"this {device.type} has no instructions for bfloat16")
    gain = bfloat16_gain(device, hidden_size)
    compared = f"bfloat16 is {gain:.1f} times as fast as float32 here"
    return Precision("bf16" if gain >= GAIN else "no", compared)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the processor multiplies bfloat16 by instructions of its own."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    try:
        reported = torch.cpu.get_capabilities()
    except AttributeError:  # before torch 2.12: the timing decides
        return True
    return any(value is True for name, value in reported.items() if "bf16" in name)


def bfloat16_gain(device: torch.device, hidden_size: int) -> float:
    """How many times as fast a product of the model's kind is, forward and backward, with casts."""
    width = min(hidden_size, 1024)
    x = torch.ones(TOKENS, width, device=device, requires_grad=True)
    weight = torch.ones(4 * width, width, device=device, requires_grad=True)
    upstream = torch.ones(TOKENS, 4 * width, device=device)

    def seconds(narrow: bool) -> float:
        _finish(device)
        began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=narrow):
            output = linear(x, weight)
        output.backward(upstream.to(output.dtype))
        _finish(device)
        return time.perf_counter() - began

    seconds(False), seconds(True)  # the first of each prepares
    # In turns, and the quickest: whatever else the machine does only ever adds.
    times = [(seconds(False), seconds(True)) for _ in range(ROUNDS)]
    return min(full for full, _ in times) / min(narrow for _, narrow in times)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
