"""Records as rows of PIQA, which lm-eval's task scores: there and back, and what is refused."""

import pytest
from datafiles import PIQA, lines, write

from data import pocket
from data.errors import InputError
from data.piqa import piqa_rows
from data.records import load_heldout
from data.rows import Record

GOOD = Record("Question: q\nAnswer:", " a", " b", where="x.jsonl:1")
WORDED = "not worded 'Question: ...\\nAnswer:'"
SPACED = "not a string that begins with a space"


def test_rows_of_piqa_come_back_as_they_were(tmp_path):
    """Odd spaces and all."""
    odd = {
        "goal": "tie a parcel \n",
        "sol1": " use a rope ",
        "sol2": 'use {{a}} "rope"',
        "label": 1,
    }
    write(tmp_path, {"train.jsonl": lines(PIQA), "valid.jsonl": lines(PIQA, odd, PIQA)})
    records, source = load_heldout(str(tmp_path))
    assert piqa_rows(records) == [PIQA, odd, PIQA]
    assert source == f"{tmp_path}/valid.jsonl (1 duplicate row)"


def test_pocket_rows_are_worded_as_lm_eval_words_piqa():
    rows = piqa_rows(load_heldout("pocket")[0])
    for i, (row, pair) in enumerate(zip(rows, pocket.heldout_rows(), strict=True)):
        solutions = [f" {row['sol1']}", f" {row['sol2']}"]
        assert f"Question: {row['goal']}\nAnswer:" == pair["prompt"]
        assert row["label"] == i % 2, "no place is the right one more often"
        assert [solutions[i % 2], solutions[1 - i % 2]] == [pair["chosen"], pair["rejected"]]


def test_a_row_by_hand():
    """One leading space is the wording's; further ones, and those of the goal, are the text's."""
    record = Record("Question:  q \nAnswer:", "  a ", " b", label=1)
    assert piqa_rows([record]) == [{"goal": " q ", "sol1": "b", "sol2": " a ", "label": 1}]
    unlabelled = {"goal": "q", "sol1": "a", "sol2": "b", "label": 0}
    swapped = {"goal": "q", "sol1": "b", "sol2": "a", "label": 1}
    assert piqa_rows([GOOD] * 3) == [unlabelled, swapped, unlabelled]


@pytest.mark.parametrize("prompt, chosen, rejected, column, reason", [
    ("Why?", " a", " b", "prompt", WORDED),
    ("Question: Why?", " a", " b", "prompt", WORDED),
    ("Why?\nAnswer:", " a", " b", "prompt", WORDED),
    ([{"role": "user", "content": "Why?"}], " a", " b", "prompt", WORDED),
    ("Question: Why?\nAnswer:", "a", " b", "chosen", SPACED),
    ("Question: Why?\nAnswer:", " a", "b", "rejected", SPACED),
    ("Question: Why?\nAnswer:", " a", None, "rejected", SPACED),
])  # fmt: skip
def test_other_rows_are_refused_by_name(prompt, chosen, rejected, column, reason):
    with pytest.raises(InputError) as error:
        piqa_rows([GOOD, Record(prompt, chosen, rejected, where="x.jsonl:2")])
    assert str(error.value) == (
        f"x.jsonl:2:{column}: {reason}, so this is no row of PIQA;"
        " lm-eval's piqa task needs goal, sol1, sol2 and label"
    )
