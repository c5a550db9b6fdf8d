"""What mutmut has to know of this suite; conftest.py takes it in where mutmut runs the tests.

mutmut notes while a test runs which functions are called, and lets those tests alone judge a
function's mutants. What a fixture of a whole module calls would count for the first test alone.
"""

import pytest
from hypothesis import Phase, settings
from mutmut.state import state

# The same examples every time: a mutant's verdict must not be luck.
settings.register_profile(
    "mutation", phases=[Phase.explicit, Phase.generate], derandomize=True, database=None
)
settings.load_profile("mutation")

_called = {}  # by a fixture: names of functions


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef):
    noted = state()._stats
    before = set(noted)
    noted.clear()
    try:
        return (yield)
    finally:
        _called.setdefault(id(fixturedef), set()).update(noted)
        noted.update(before)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item):
    for fixtures in item._fixtureinfo.name2fixturedefs.values():
        for fixture in fixtures:
            state()._stats.update(_called.get(id(fixture), ()))


def pytest_collection_modifyitems(items):
    """Quick files first and whole runs last: most mutants are killed before."""
    seconds = {}
    for item in items:
        duration = state().duration_by_test.get(item.nodeid, 0)
        seconds[item.path] = seconds.get(item.path, 0) + duration
    items.sort(key=lambda item: (hasattr(item.module, "run"), seconds[item.path], item.path))
