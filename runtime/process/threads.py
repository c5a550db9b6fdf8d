"""How the threads of this process wait for one another. Standard library only: before torch."""

from __future__ import annotations

import os

# OpenMP's variables for it, the standard's and two libraries' own.
OF_OPENMP = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# GNU's OpenMP looks so often before it sleeps: that bridges the gaps between a step's products.
# In single runs on two cores, 0 made a step on a quiet machine slower, 5,000 one beside a busy
# process, and the default of 300,000 that one by far: it takes the time of whatever runs there.
LOOKS = "1000"


def sleep_while_waiting() -> None:
    """Have OpenMP's threads sleep while they wait, unless the environment says how they wait.

    By default they spin, and so take the processor from whatever runs beside: another rank, another
    job, a browser. It has to be set before torch is imported.
    """
    if not any(name in os.environ for name in OF_OPENMP):
        os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": LOOKS}
