"""Makes the helpers of this folder (reference, tolerances, ...) importable by name."""

import locale
import os
import sys

import pytest

# Tiny models: threads would cost more than they bring, and other tests run beside.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, os.path.dirname(__file__))

if "MUTANT_UNDER_TEST" in os.environ:
    from under_mutation import (  # noqa: F401
        pytest_collection_modifyitems,
        pytest_fixture_setup,
        pytest_runtest_teardown,
    )


@pytest.fixture
def ascii_locale():
    """A machine whose own encoding is not UTF-8: who leaves it open how to read a file fails."""
    before = locale.setlocale(locale.LC_CTYPE)
    locale.setlocale(locale.LC_CTYPE, "C")
    yield
    locale.setlocale(locale.LC_CTYPE, before)


@pytest.fixture
def config_file(tmp_path):
    def write(text, name="run.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return f"--config {path}"

    return write
