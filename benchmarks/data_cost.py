"""The memory and the seconds that data takes, with nothing else loaded; for benchmarks/scaling.py.

python -m benchmarks.data_cost MODEL DATA HELD_OUT_DATA
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pyarrow.compute  # noqa: F401  (whose own memory is not the data's)

from data.prepared import DataSettings
from data.token_cache import prepare_cached
from models.load import load_tokenizer

PAGE = 4096


def resident() -> int:
    """Bytes of this process that are in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * PAGE


def main() -> None:
    model, data, heldout = sys.argv[1:]
    tokenizer = load_tokenizer(model)
    tokenizer(["a"])
    before, began = resident(), time.perf_counter()
    prepared = prepare_cached(DataSettings(data, heldout), tokenizer)
    lengths = prepared.train.tree_lengths(include_last_token=False).tolist()
    digests = prepared.train.digest, prepared.heldout.digest
    print(
        json.dumps(
            {
                "data bytes": resident() - before,
                "data seconds": time.perf_counter() - began,
                "tokens": sum(lengths),
                "digests": digests,
            }
        )
    )


if __name__ == "__main__":
    main()
