"""Rows as an Arrow table: the same rows, lengths and ids as a list of them has."""

import random

import pytest

from data import row_table
from data.row_table import Row, RowTable
from data.splits import Split
from data.trees import tree_tokens


def any_row(draw: random.Random, responses: int = 2) -> Row:
    """A row with shared beginnings, masks, margins and odd places now and then."""
    ids = lambda most: [draw.randrange(50_000) for _ in range(draw.randint(1, most))]  # noqa: E731
    shared = ids(3) if draw.random() < 0.5 else []
    texts = [shared + ids(6) for _ in range(responses)]
    masks = [[draw.random() < 0.5 for _ in text] for text in texts]
    return Row(
        draw.randrange(100),
        ids(5),
        texts,
        [draw.random() < 0.5 for _ in texts],
        [draw.randrange(30) for _ in texts],
        draw.uniform(-1, 1),
        masks if draw.random() < 0.3 else None,
        draw.choice(["", "a.jsonl:7", "caf\udce9.jsonl:18", "pocket[train]:row 2"]),
    )


def numbered(rows: list[Row]) -> list[Row]:
    return [row_table.replace(row, index=number) for number, row in enumerate(rows)]


@pytest.fixture(params=[1, 2, 3, None], ids=["one", "two", "three", "mixed"])
def rows(request, monkeypatch):
    """40 rows of as many responses each, in batches of 16 rows."""
    monkeypatch.setattr(row_table, "BATCH_ROWS", 16)
    draw = random.Random(str(request.param))
    return [any_row(draw, request.param or draw.randint(1, 2)) for _ in range(40)]


@pytest.fixture(params=["memory", "file"])
def table(request, rows, tmp_path):
    table = RowTable.of(iter(rows))
    if request.param == "memory":
        return table
    table.write(tmp_path / "rows.arrow")
    return RowTable.read(tmp_path / "rows.arrow")


def test_a_table_is_the_sequence_of_its_rows(rows, table):
    expected = numbered(rows)
    assert len(table) == 40 and list(table) == expected and table == expected
    assert [table[i] for i in range(40)] == expected
    assert table[-1] == expected[-1] and table[14:18] == expected[14:18]
    assert table[5:1:-2] == expected[5:1:-2]
    for beyond in (40, -41):
        with pytest.raises(IndexError):
            table[beyond]
    assert len(table.batches) == 3


def test_values_are_python_s_own(table):
    """Lists, ints and bools, which `repr` and JSON write as they do those of any row."""
    for row in table:
        assert {type(token) for text in (row.prompt, *row.responses) for token in text} == {int}
        assert {type(end) for end in row.ends} == {bool} and type(row.margin) is float


def test_lengths_are_those_of_the_rows(rows, table):
    for last in (False, True):
        expected = [tree_tokens(row, include_last_token=last) for row in rows]
        assert table.tree_lengths(include_last_token=last).tolist() == expected
        assert Split(rows, packing={"include_last_token": last}).lengths == expected
        found = Split(table, packing={"include_last_token": last}).lengths
        assert found == expected and {type(length) for length in found} == {int}
    assert table.longest() == max(len(r.prompt) + max(map(len, r.responses)) for r in rows)


def test_token_ids_are_all_of_them(rows, table):
    texts = [text for row in rows for text in (row.prompt, *row.responses)]
    assert table.token_ids == {token for text in texts for token in text}


def test_what_a_row_has_once_is_repeated_for_its_responses(rows, table):
    assert table.repeated("margin").tolist() == [r.margin for r in rows for _ in r.responses]


def test_the_digest_is_of_everything_but_the_place(rows, table):
    assert RowTable.of(rows).digest == table.digest == RowTable.of(list(table)).digest
    elsewhere = [row_table.replace(row, where="b.jsonl:1", index=9) for row in rows]
    assert RowTable.of(elsewhere).digest == table.digest
    changed = {
        "prompt": [[*rows[7].prompt, 1]],
        "responses": [[*rows[7].responses[:-1], [1, 2, 3]]],
        "ends": [[not end for end in rows[7].ends]],
        "characters": [[n + 1 for n in rows[7].characters]],
        "margin": [rows[7].margin + 1],
        "masks": [[[True, False]], None if rows[7].masks else [[True]]],
    }
    assert changed.keys() == set(Row.__dataclass_fields__) - {"index", "where"}
    for name, values in changed.items():
        for value in values:
            other = [*rows[:7], row_table.replace(rows[7], **{name: value}), *rows[8:]]
            assert RowTable.of(other).digest != table.digest, name
    assert RowTable.of(rows[::-1]).digest != table.digest


def test_a_table_of_a_table_is_itself(table):
    assert RowTable.of(table) is table


def test_a_table_of_no_rows(tmp_path):
    table = RowTable.of([])
    table.write(tmp_path / "rows.arrow")
    for none in (table, RowTable.read(tmp_path / "rows.arrow")):
        assert len(none) == 0 and list(none) == [] and none.token_ids == frozenset()
        assert none.tree_lengths(include_last_token=True).tolist() == []
        assert none.repeated("margin").tolist() == []


def test_a_batch_ends_at_its_tokens_too(monkeypatch):
    """Arrow counts the tokens of a batch in 32 bits."""
    monkeypatch.setattr(row_table, "BATCH_TOKENS", 100)
    rows = numbered([Row(0, [1] * 30, [[2] * 30], [True], [1]) for _ in range(5)])
    table = RowTable.of(rows)
    assert [len(batch) for batch in table.batches] == [2, 2, 1] and table == rows


def test_what_is_not_looked_at_is_not_read(tmp_path):
    """Lengths of rows in a file: of 40 MB of tokens nothing gets into memory."""
    rows = [Row(0, [7] * 5_000, [[8] * 5_000], [True], [1]) for _ in range(1_000)]
    RowTable.of(rows).write(tmp_path / "rows.arrow")
    before = resident()
    table = RowTable.read(tmp_path / "rows.arrow")
    assert table.longest() == 10_000 and len(table) == 1_000
    assert (tmp_path / "rows.arrow").stat().st_size > 40e6
    assert resident() - before < 10e6
    assert sum(sum(row.prompt) for row in table) == 7 * 5_000 * 1_000


def resident() -> int:
    """Bytes of this process's memory; pytest skips where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096
    except OSError:
        pytest.skip("no /proc")
