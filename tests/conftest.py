"""Makes the helpers of this folder (reference, tolerances, ...) importable by name."""

import os
import sys

# Tiny models: threads would cost more than they bring, and other tests run beside.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, os.path.dirname(__file__))
