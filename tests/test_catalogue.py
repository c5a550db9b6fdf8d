"""The bug catalogue: our loop passes every check, and every wrong variant fails one."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.conformance.__main__ import main
from benchmarks.conformance.catalogue import bugs, story
from benchmarks.conformance.catalogue.bugs import BUGS
from benchmarks.conformance.catalogue.kill import UNSEEN, kill
from benchmarks.conformance.catalogue.loop.base import LOOP_MUTANTS, Seen, exchanged
from benchmarks.conformance.catalogue.mutant import MUTANTS

PAGE = Path(bugs.__file__).parents[1] / "CATALOGUE.md"
EVERY: list[Any] = [*MUTANTS, *LOOP_MUTANTS]
CHECKS = {f"{m.check.__name__} {dict(m.options) or ''}": m for m in LOOP_MUTANTS}


def test_there_are_enough():
    """Sixty bugs and more, in the loop and in the functions, each with its story and its fix."""
    assert len(story.entries()) >= 60
    of_loop = {m.bug for m in LOOP_MUTANTS}
    assert len(of_loop) >= 30 and len({m.bug for m in MUTANTS if m.bug}) >= 30
    assert story.entries().keys() <= BUGS.keys()
    assert len({str(m) for m in EVERY}) == len(EVERY)
    readme = (PAGE.parents[2] / "README.md").read_text("utf-8")
    assert f"\n- {len(EVERY)} wrong variants of the losses and of the loop" in readme
    shipped = sum(map(len, story.entries().values()))
    assert f"{shipped} of them are the {len(story.entries())} bugs that" in readme
    for m in EVERY:
        assert len(m.story) >= len("The sign.") and m.story.endswith("."), m


@pytest.mark.parametrize("name", CHECKS)
def test_our_loop_passes(name):
    seen = CHECKS[name].right()
    assert seen and [one for one in seen if one.off] == []


@pytest.mark.parametrize("mutant", LOOP_MUTANTS, ids=str)
def test_a_wrong_loop_is_rejected(mutant):
    found = kill(mutant)
    assert found is not None, mutant.story
    assert found.seen and found.about


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_wrong_function_is_rejected_by_a_vector(mutant):
    """All but what no number shows, which tests/test_mutants.py rejects."""
    found = kill(mutant)
    assert (found is None) == (str(mutant) in UNSEEN), mutant.story
    assert not (mutant.bug and found is None)


def test_nothing_stays_exchanged():
    """After a mutant the loop is ours again, also where a check ends in an exception."""
    import train

    right = train.learning_rate
    with pytest.raises(ZeroDivisionError), exchanged("train:learning_rate", lambda right: 1 / 0):
        assert train.learning_rate is not right
        train.learning_rate()  # type: ignore[call-arg]
    assert train.learning_rate is right


@pytest.mark.parametrize(
    "right, got",
    [(0.0, float("nan")), (1.0, 1 + 1e-8), ([1.0, 2.0], [1.0]), (0.0, None), ("a", "b"), (2, 0)],
)
def test_a_difference_is_seen(right, got):
    assert Seen("", right, got).off and not Seen("", right, right).off


def test_a_story_has_the_numbers(capsys):
    assert main(["--story", "d2"]) == 0
    told = capsys.readouterr().out
    for part in ("pytorch/pytorch#68425", "where_sends_nan", "orpo/", "right -1.05819767", "nan"):
        assert part in told
    assert main(["--story", "A1"]) == 0
    told = capsys.readouterr().out
    for part in ("trl#2175", "mean_of_means for train.optimizer_step", "loss in the log"):
        assert part in told


def test_every_story_can_be_told():
    for bug in story.entries():
        told = story.story(BUGS[bug])
        assert told.count("  case    ") == len(story.entries()[bug])
        assert max(map(len, told.splitlines())) <= story.WIDTH, bug


def test_what_is_not_there(capsys):
    assert main(["--story", "D222"]) == 2
    assert "did you mean D2?" in capsys.readouterr().err
    assert main(["--story", "I8"]) == 2
    assert "no mutant" in capsys.readouterr().err


def test_the_page_is_what_the_program_prints(capsys):
    """Where it is not: --stories --markdown > benchmarks/conformance/CATALOGUE.md."""
    assert main(["--stories", "--markdown"]) == 0
    assert capsys.readouterr().out == PAGE.read_text("utf-8")


def test_the_list_has_all(capsys):
    assert main(["--stories"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(story.entries())
    assert main(["--catalogue"]) == 0
    assert capsys.readouterr().out.endswith(" 0 survive\n")


def test_a_survivor_is_told(monkeypatch, capsys):
    monkeypatch.setattr(story, "kill", lambda mutant: None)
    assert main(["--catalogue"]) == 1
    assert "SURVIVES" in capsys.readouterr().out


def test_a_line_out_of_place_is_an_error(tmp_path):
    path = tmp_path / "bugs.txt"
    path.write_text("A1  somebody#1\n    wrong: this\n")
    with pytest.raises(ValueError, match="three lines"):
        bugs.read(path)
