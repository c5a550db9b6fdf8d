"""What the machine and train.py's imports are, in a process of its own: JSON on standard output.

python -m benchmarks.versus.probe
"""

from __future__ import annotations

import json
import time

import torch

import train  # noqa: F401  (for what it imports)
from runtime.report import peak_memory

SIZE, SECONDS = 2048, 1.0


def sgemm() -> float:
    """Floating-point operations a second of float32 matrix products, over a second."""
    a, b = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE)
    for _ in range(3):
        a @ b
    done, began = 0, time.perf_counter()
    while (taken := time.perf_counter() - began) < SECONDS:
        a @ b
        done += 1
    return 2 * SIZE**3 * done / taken


if __name__ == "__main__":
    imports = peak_memory(torch.device("cpu"))
    found = {"imports_bytes": imports, "threads": torch.get_num_threads(), "sgemm": sgemm()}
    print(json.dumps(found))
