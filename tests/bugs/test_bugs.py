"""Every bug of bugs.txt would be noticed here: each patch is rejected by what it names."""

import re
from pathlib import Path

import pytest

from benchmarks.conformance.load import load

from .__main__ import main
from .bugs import BUGS, read
from .patch import Edit, PatchError, applied, function_at
from .rejection import rejections
from .story import diff

PATCHES = {patch.name: patch for bug in BUGS.values() for patch in bug.patches}
TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def found(request):
    """The rejections of the patches that are asked for, in one run of pytest inside this one."""
    asked = [item.callspec.params.get("name") for item in request.session.items if _is_mine(item)]
    return rejections([PATCHES[name] for name in asked])


def _is_mine(item):
    return getattr(item, "function", None) is test_a_patch_is_rejected_by_what_it_names


@pytest.mark.parametrize("name", PATCHES)
def test_a_patch_is_rejected_by_what_it_names(name, found):
    assert not found[name].before, f"{PATCHES[name].by} fails without the patch too"
    assert found[name].after, f"{PATCHES[name].by} passes with the patch"
    assert not found[name].crashed, found[name].after


def test_every_bug_has_a_patch_and_every_diff_is_in_a_file():
    assert len(BUGS) >= 112
    for bug in BUGS.values():
        assert bug.patches, bug.id
        for patch in bug.patches:
            lines = list(diff(patch))
            assert sum(line.startswith("+++ b/") for line in lines) >= 1, patch.name


def test_every_bug_that_a_test_or_a_vector_cites_is_there():
    texts = [path.read_text("utf-8") for path in TESTS.glob("*.py")]
    cited = {name for text in texts for name in re.findall(r"\b[A-J]\d{1,2}\b", text)}
    assert cited - {"F16", "F32", "F64"} <= {*BUGS}  # those three are dtypes of safetensors
    assert {cited for case in load(long=False) for cited in case.cites} <= {*BUGS}


# --- the patches themselves ----------------------------------------------------------------------


def halved(x):
    half = x / 2
    return half


class Box:
    size = property(lambda self: 3)

    @property
    def width(self):
        return 4

    @staticmethod
    def of(x):
        if x:
            x += 1
        return x


HERE, HALF = __name__, Edit(f"{__name__}:halved", ("half = x / 2",), ("half = x / 4",))


def test_whoever_holds_the_function_has_the_patch_and_no_longer():
    held = {"halved": halved, "of": Box().of}
    edits = [
        HALF,
        Edit(f"{HERE}:Box.of", ("if x:", "    x += 1"), ("if x:", "    y = 2", "    x += y")),
        Edit(f"{HERE}:Box.width", ("return 4",), ("return 5",)),
    ]
    with pytest.raises(ZeroDivisionError) as error, applied(edits):
        assert (held["halved"](8), held["of"](1), Box().width) == (2, 3, 5)
        held["halved"](8 / 0)
    assert error.traceback[0].lineno > 0
    assert (held["halved"](8), held["of"](1), Box().width) == (4, 2, 4)


def test_a_patch_has_the_lines_of_an_edited_file():
    first = halved.__code__.co_firstlineno
    broken = Edit(HALF.at, HALF.old, ("half = x", "half = half / 0"))
    with pytest.raises(ZeroDivisionError) as error, applied([broken]):
        halved(8)
    assert error.traceback[-1].lineno + 1 == first + 2
    assert Path(error.traceback[-1].path) == Path(__file__)


@pytest.mark.parametrize(
    "edit, message",
    [
        (Edit(HALF.at, ("half = x / 3",), ("pass",)), "0 places match, not 1"),
        (Edit(f"{HERE}:Box.of", ("x",), ("y",)), "0 places match, not 1"),
        (Edit(f"{HERE}:twice", ("x += 1",), ("x += 2",)), "2 places match, not 1"),
        (Edit(f"{HERE}:nowhere", ("a",), ("b",)), "has no attribute 'nowhere'"),
        (Edit(f"{HERE}:HERE", ("a",), ("b",)), "is a str, not a function"),
    ],
)
def test_a_patch_that_does_not_fit_is_refused(edit, message):
    with pytest.raises(PatchError, match=message), applied([edit]):
        pass


def twice(x):
    x += 1
    x += 1
    return x


def test_a_function_below_its_decorators_is_found():
    assert (
        function_at("runtime.sources.reference:reference_logps").__code__.co_name
        == "reference_logps"
    )
    assert function_at(f"{HERE}:Box.width").__name__ == "width"


# --- the text and the command --------------------------------------------------------------------

ENTRY = """A1  somebody#1
    wrong: this
    right: that
    in module:function
    - one
    + two
    by vector sft/ragged
"""


@pytest.mark.parametrize(
    "text, message",
    [
        (ENTRY.replace("A1  somebody#1", "A1"), "bugs.txt:1: not `ID  source`"),
        (ENTRY + ENTRY, "bugs.txt:8: not `ID  source`, or an id twice"),
        (ENTRY.replace("right", "left"), "bugs.txt:3: expected `right: ...`"),
        (ENTRY.replace("    by vector sft/ragged\n", ""), "expected `by ...`"),
        (ENTRY.replace("    - one\n", ""), r"expected `by ...`, found '\+ two'"),
    ],
)
def test_a_line_out_of_place_is_an_error(tmp_path, text, message):
    (tmp_path / "bugs.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "bugs.txt")


def test_several_patches_with_several_edits(tmp_path):
    again = "    in module:f\n    - a\n    -     b\n    + c\n    - d\n    in module:g\n    - e\n"
    (tmp_path / "bugs.txt").write_text(f"# head\n\n{ENTRY}{again}    by tests/test_x.py::test_y\n")
    first, second = read(tmp_path / "bugs.txt")["A1"].patches
    assert (first.name, second.name, second.by) == ("A1", "A1.2", "tests/test_x.py::test_y")
    assert second.edits == (
        Edit("module:f", ("a", "    b"), ("c",)),
        Edit("module:f", ("d",), ()),
        Edit("module:g", ("e",), ()),
    )


def test_a_story_has_the_diff_and_the_numbers(capsys):
    assert main(["--story", "d2"]) == 0
    shown = capsys.readouterr().out
    for part in (
        *(
            "pytorch/pytorch#68425",
            "+++ b/losses/orpo.py",
            "+    log1mexp_far = torch.log1p(-torch.exp(a))",
        ),
        *("rejected by vector orpo/certain-chosen-60", "right -1.05819767, wrong nan"),
    ):
        assert part in shown
    assert main(["--story", "A19"]) == 0
    assert "a rank waits for the other in a collective" in capsys.readouterr().out


def test_what_is_not_there(capsys):
    assert main(["--story", "D222"]) == 2
    assert "did you mean D2?" in capsys.readouterr().err


def test_the_list_has_all(capsys):
    assert main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(BUGS)
