"""Two processes on this machine, joined by gloo."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def run_on_two_ranks(script, out):
    """Start a script of this folder by torchrun, with the folder it is to write to."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    subprocess.run(
        [*launcher, "--master_port", port, str(Path(__file__).with_name(script)), str(out)],
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=300,
    )
