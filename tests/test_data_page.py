"""docs/data.md shows what the code makes of its rows."""

from benchmarks.data_page import PAGE, SECTION, fixed


def test_the_page_shows_what_is_trained_of_each_data_set() -> None:
    page = PAGE.read_text("utf-8")
    assert page.count("\n### ") == len(SECTION.findall(page)), "a section that nothing compares"
    assert fixed(page) == page, "not what the code shows: python -m benchmarks.data_page --fix"


def test_a_page_that_shows_something_else_is_corrected() -> None:
    page = PAGE.read_text("utf-8")
    example = next(SECTION.finditer(page))
    other = page[: example.start(4)] + "something else\n" + page[example.end(4) :]
    assert fixed(other) == page
