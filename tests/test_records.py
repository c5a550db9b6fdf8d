"""Data files: every kind of row that is read. What is refused: test_bad_rows.py."""

import csv
import json
import os

import pytest
from datafiles import BAD, GOOD, PAIR, PIQA, USER, bare, lines, parquet, read, write
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import InputError
from data.join import common_prompt
from data.options import read_options
from data.records import load_data


def test_piqa_is_worded_as_lm_eval_words_it_and_not_stripped(tmp_path):
    rows = read(tmp_path, lines(PIQA, PIQA | {"goal": " g ", "sol1": "one ", "label": 1}))
    assert bare(rows[0]) == ("Question: g\nAnswer:", " one", " two")
    assert bare(rows[1]) == ("Question:  g \nAnswer:", " two", " one ")


def test_piqa_wording_is_that_of_the_installed_lm_eval():
    import yaml

    lm_eval = pytest.importorskip("lm_eval")
    with open(os.path.join(os.path.dirname(lm_eval.__file__), "tasks/piqa/piqa.yaml")) as file:
        task = yaml.safe_load(file)
    assert task["dataset_path"] == "baber/piqa"
    assert task["doc_to_text"] == "Question: {{goal}}\nAnswer:"
    assert task["doc_to_choice"] == "{{[sol1, sol2]}}"
    assert task.get("target_delimiter", " ") == " "


@pytest.mark.parametrize("name", ["train.jsonl", "train.json", "train.csv", "train.parquet"])
def test_every_format_gives_the_same_rows(tmp_path, name):
    rows = [PIQA | {"goal": 'a "quoted", \nbroken ü\u2028line'}, PIQA | {"label": 1}]
    write(tmp_path, {"valid.jsonl": lines(PAIR)})
    path = tmp_path / name
    if name.endswith("parquet"):
        parquet(path, rows)
    elif name.endswith("csv"):
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        path.write_text(text if name.endswith("l") else json.dumps(rows))
    train, _, _ = load_data(str(tmp_path), pairs=True)
    assert [bare(row) for row in train] == [
        ('Question: a "quoted", \nbroken ü\u2028line\nAnswer:', " one", " two"),
        ("Question: g\nAnswer:", " two", " one"),
    ]
    second = {"jsonl": ":2", "json": ":row 2", "csv": ":4", "parquet": ":row 2"}
    assert train[1].where == str(path) + second[name.split(".")[1]]


@pytest.mark.parametrize(
    "content",
    [
        lines(PAIR, PAIR),
        lines(PAIR, PAIR)[:-1],
        lines(PAIR, PAIR).replace("\n", "\r\n"),
        b"\xef\xbb\xbf" + lines(PAIR, PAIR).encode(),
        lines(PAIR | {"id": 7, "extra": None, "label": True}, PAIR),
    ],
    ids=["plain", "no last newline", "crlf", "bom", "extra columns"],
)
def test_harmless_differences_between_files(tmp_path, content):
    assert [bare(row) for row in read(tmp_path, content)] == [("p", " c", " r")] * 2


def test_json_lines_under_the_name_json_and_an_array(tmp_path):
    for content in (lines(PAIR, PAIR), json.dumps([PAIR, PAIR])):
        assert [bare(row) for row in read(tmp_path, content, "a.json")] == [("p", " c", " r")] * 2


def test_an_array_may_begin_with_white_space(tmp_path):
    assert len(read(tmp_path, "\n  " + json.dumps([PAIR, PAIR]), "a.json")) == 2


@pytest.mark.parametrize("margin", ["1_0", "١", "0x10", " 1", "1e", "nan", "--1", "1e999"])
def test_a_margin_of_a_csv_file_is_a_plain_number(tmp_path, margin):
    table = f"prompt,chosen,rejected,margin\np,c,r,{margin}\n"
    with pytest.raises(InputError, match=r"a.csv:2:margin: .* is not"):
        read(tmp_path, table, "a.csv")
    for text, value in (("-1.5e2", -150), (".5", 0.5), ("", None), ("+3.", 3)):
        (record,) = read(tmp_path, f"prompt,chosen,rejected,margin\np,c,r,{text}\n", "a.csv")
        assert record.margin == value


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_of_a_csv_file_end_in_any_way_and_cells_stay_as_they_are(tmp_path, end):
    table = end.join(["prompt,chosen,rejected", 'p,"c\r\nc",r', "p,c,"])
    with pytest.raises(InputError, match=r"a.csv:4:rejected: the response is empty"):
        read(tmp_path, table, "a.csv")
    assert bare(read(tmp_path, table + "r", "a.csv")[0]) == ("p", "c\r\nc", "r")
    # The largest number that a C long holds everywhere; it is the limit of the whole module.
    assert csv.field_size_limit() == 2**31 - 1


def test_the_label_stays_with_the_record(tmp_path):
    records = read(tmp_path, lines(PIQA, PIQA | {"label": 1}))
    assert [(record.chosen, record.label) for record in records] == [(" one", 0), (" two", 1)]
    assert read(tmp_path, lines(PAIR))[0].label is None


def test_margin(tmp_path):
    content = lines(PAIR | {"margin": 2}, PAIR | {"margin": None}, PAIR)
    assert [row.margin for row in read(tmp_path, content)] == [2.0, None, None]
    largest = 3.4028234e38  # of float32
    assert read(tmp_path, lines(PAIR | {"margin": -largest}))[0].margin == -largest
    table = "prompt,chosen,rejected,margin\np,c,r,1.5\np,c,r,\n"
    assert [row.margin for row in read(tmp_path, table, "t.csv")] == [1.5, None]


def test_columns_are_renamed_and_the_held_out_file_may_use_our_names(tmp_path):
    theirs = {"question": "p", "preferred": " c", "rejected": " r"}
    renamed = "prompt=question,chosen=preferred"
    assert bare(read(tmp_path, lines(theirs), columns=renamed)[0]) == ("p", " c", " r")
    rated = "goal,sol1,sol2,right\ng,one,two,1\n"
    assert read(tmp_path, rated, "t.csv", columns="label=right")[0].chosen == " two"


def test_prompt_and_completion_are_for_losses_without_pairs(tmp_path):
    row = {"prompt": "p", "completion": " c"}
    assert read(tmp_path, lines(row), pairs=False)[0].rejected is None
    # A rejected response is kept: held-out pair accuracy needs it.
    assert read(tmp_path, lines(PAIR), pairs=False)[0].rejected == " r"
    with pytest.raises(InputError, match=r"train.jsonl:1:rejected: .*missing.*two responses"):
        read(tmp_path, lines(row))


@pytest.mark.parametrize("chosen, rejected, prompt", [
    ("Q: up?\nA: yes", "Q: up?\nA: no", "Q: up?\nA:"),
    ("Q: up?\nA: yes", "Q: up?\nA: yet", "Q: up?\nA:"),  # TRL: "Q: up?\nA: ye"
    ("A: yes", "A: yes please", "A:"),  # one begins the other: its last word is the response's
    ("A: yes ", "A: yes please", "A:"),
    ("A: yes.", "A: yes. No", "A: yes"),
    ("A: yes, sir", "A: yesterday", "A:"),
    ("A: a  b", "A: a  c", "A: a "),  # one space is the response's, as in TRL
    ("A:\nyes", "A:\nno", "A:\n"),
    ("yes", "no", ""),
    ("yes", "yesterday", ""),
    ("yes sir", "yes", ""),
])  # fmt: skip
def test_a_prompt_not_given_is_what_both_texts_begin_with(tmp_path, chosen, rejected, prompt):
    others = [{"chosen": "Q: up? yes", "rejected": "Q: up? no"}] * 2  # most rows have a prompt
    for one, two in ((chosen, rejected), (rejected, chosen)):
        found = bare(read(tmp_path, lines({"chosen": one, "rejected": two}, *others))[0])
        assert found == (prompt, one[len(prompt) :], two[len(prompt) :])


some = st.text(" \nab.", max_size=6)


@settings(deadline=None)
@given(some, some, some)
def test_an_implicit_prompt_leaves_both_responses_some_text(prompt, first, second):
    first, second = prompt + first, prompt + second
    if first != second and first.strip() and second.strip():
        n = common_prompt(first, second)
        assert 0 <= n and first[:n] == second[:n] and first[n:].strip() and second[n:].strip()
        assert not (n and first[n - 1].isalnum() and (first[n].isalnum() or second[n].isalnum()))


SYSTEM = {"role": "system", "content": "be"}


@pytest.mark.parametrize("row, prompt", [
    ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, [USER]),
    ({"prompt": "hi", "chosen": [GOOD], "rejected": [BAD]}, [USER]),
    ({"prompt": [USER], "chosen": "good", "rejected": "bad"}, [USER]),
    ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, [USER]),
    ({"prompt": "hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, [USER]),  # UltraFeedback
    ({"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]}, [USER]),
    ({"prompt": "hi", "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]},
     [SYSTEM, USER]),
    ({"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, GOOD, USER, BAD]},
     [USER, GOOD, USER]),
])  # fmt: skip
def test_messages_in_every_form_become_prompt_and_one_answer(tmp_path, row, prompt):
    assert bare(read(tmp_path, lines(row))[0]) == (prompt, [GOOD], [BAD])


@pytest.mark.parametrize("prompt", ["hi", [USER]])
@pytest.mark.parametrize("completion", [[GOOD], [USER, GOOD]])
def test_a_completion_of_messages_may_bring_the_prompt_again(tmp_path, prompt, completion):
    row = {"prompt": prompt, "completion": completion}
    assert bare(read(tmp_path, lines(row), pairs=False)[0]) == ([USER], [GOOD], None)


def test_a_turn_that_nobody_answers_is_said(tmp_path):
    whole, asked = ({"messages": [USER, GOOD, *more]} for more in ([], [USER]))
    write(tmp_path, {"train.jsonl": lines(asked, whole), "valid.jsonl": lines(whole)})
    records, _, told = load_data(str(tmp_path), pairs=False, options=read_options())
    assert [bare(record) for record in records] == [([USER], [GOOD], None)] * 2
    assert "1 row ends with a turn that nobody answers, not trained" in told
