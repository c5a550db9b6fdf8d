"""Threads that wait sleep, unless the user says otherwise; known before torch is imported."""

import os
import subprocess
import sys

import pytest
from runs import ROOT

from runtime.process.threads import OF_OPENMP, sleep_while_waiting

STARTED = """
import os, runpy, sys
sys.argv = ["train.py", "--help"]
try:
    runpy.run_path("train.py", run_name="__main__")
except SystemExit:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    print(*map(os.environ.get, names), "torch" in sys.modules)
"""


@pytest.mark.parametrize("given, policy", [
    ({}, "PASSIVE 1000"),
    ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"),
    ({"GOMP_SPINCOUNT": "9"}, "None 9"),
])  # fmt: skip
def test_train_py_sets_how_threads_wait_before_torch(given, policy):
    env = {name: value for name, value in os.environ.items() if name not in OF_OPENMP} | given
    command = [sys.executable, "-c", STARTED]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == f"{policy} False"
    assert "Threads sleep while they wait, unless OMP_WAIT_POLICY" in " ".join(done.stdout.split())


@pytest.mark.parametrize("name", OF_OPENMP)
def test_a_users_own_setting_stays(monkeypatch, name):
    for other in OF_OPENMP:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "1")
    before = dict(os.environ)
    sleep_while_waiting()
    assert dict(os.environ) == before
