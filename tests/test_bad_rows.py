"""Every kind of file and row that is refused, each by one line that says where and what to do."""

import json

import pytest
from datafiles import BAD, GOOD, PAIR, PIQA, USER, lines, parquet, read, write

from data import errors
from data.errors import InputError
from data.options import read_options
from data.readers import short
from data.records import load_data

HALF = '{"prompt": "p", "chosen": "\\ud800", "rejected": "r"}\n'
P = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}

REFUSED = {
    "empty": ("", r":1: the file has no rows"),
    "blank line": (lines(PAIR) + "\n" + lines(PAIR), r":2:1: the line is blank"),
    "only newline": ("\n", r":1:1: the line is blank"),
    "not json": (lines(PAIR) + "{'a': 1}\n" + lines(PAIR), r":2:2: not JSON \(.*one object a line"),
    "single value": ("not\n", r":1:1: not JSON \(.*\); write one object a line$"),
    "truncated": (lines(PAIR, PAIR)[:-9],
                  r":2:\d+: not JSON \(.*\); the file ends inside this row, get it again$"),
    "array row": (lines(PAIR, [1]), r":2:1: \[1\] is not an object"),
    "duplicate key": ('{"prompt": "p", "prompt": "q"}\n', r":1:'prompt': the key is there twice"),
    "later key twice": ('{"a": 1, "b": 2, "b": 3}\n', r":1:'b': the key is there twice"),
    "huge number": ('{"a": ' + "9" * 5000 + "}\n", r":1:1: not usable JSON"),
    "deep": ("[" * 100_000 + "\n", r":1:\d+: not (usable )?JSON"),
    "unknown columns": (lines({"a": 1}), r":1: of the columns a none is known"),
    "missing rejected": (lines({"prompt": "p", "chosen": "c"}), r":1:rejected: .* missing; add"),
    "only chosen": (lines({"chosen": "c"}), r":1:rejected: the column is missing; add it$"),
    "only a prompt": (lines({"prompt": "p"}), r":1:completion: the column is missing; add it$"),
    "missing later": (lines(PAIR, {"prompt": "p", "chosen": "c"}), r":2:rejected: .* missing"),
    "missing label": (lines({"goal": "g", "sol1": "a", "sol2": "b"}),
                      r":1:label: the column is missing; add it, or put PIQA's train-labels.lst"
                      r" beside train.jsonl$"),
    "prompt only later": (lines({"chosen": "a", "rejected": "b"}, PAIR), r":2:prompt: .* every"),
    "null": (lines(PAIR | {"chosen": None}), r":1:chosen: null is not a string"),
    "number": (lines(PAIR | {"prompt": 3}), r":1:prompt: 3 is not a string"),
    "bool": (lines(PAIR | {"rejected": True}), r":1:rejected: True is not a string"),
    "object": (lines(PAIR | {"rejected": {}}), r":1:rejected: \{\} is not a string"),
    "list of strings": (lines(PAIR | {"prompt": ["p"]}), r":1:prompt: message 1 is not an object"),
    "empty list": (lines(PAIR | {"prompt": []}), r":1:prompt: a list without messages"),
    "mixed": (lines(PAIR | {"chosen": [GOOD]}), r":1:rejected: one is a string, one is messages"),
    "empty response": (lines(PAIR | {"chosen": ""}), r":1:chosen: the response is empty"),
    "blank response": (lines(PAIR | {"rejected": " \n\t"}), r":1:rejected: the response is empty"),
    "blank first solution": (lines(PIQA | {"sol1": ""}), r":1:sol1: the response is empty"),
    "blank solution": (lines(PIQA | {"sol2": " "}), r":1:sol2: the response is empty"),
    "messages as sol1": (lines(PIQA | {"sol1": [GOOD]}), r":1:sol1: messages in a PIQA row"),
    "messages as sol2": (lines(PIQA | {"sol2": [GOOD]}), r":1:sol1: messages in a PIQA row"),
    "same": (lines(PAIR, PAIR | {"rejected": " c"}), r":2:rejected: the same as chosen"),
    "same solutions": (lines(PIQA | {"sol2": "one"}), r":1:sol2: the same as sol1"),
    "label 2": (lines(PIQA, PIQA | {"label": 2}), r":2:label: 2 is not 0 or 1; 0 says"),
    "label '1'": (lines(PIQA | {"label": "1"}), r":1:label: '1' is not 0 or 1"),
    "label true": (lines(PIQA | {"label": True}), r":1:label: True is not 0 or 1"),
    "label 1.0": (lines(PIQA | {"label": 1.0}), r":1:label: 1.0 is not 0 or 1"),
    "label -1": (lines(PIQA | {"label": -1}), r":1:label: -1 is not 0 or 1"),
    "label null": (lines(PIQA | {"label": None}), r":1:label: None is not 0 or 1"),
    "goal messages": (lines(PIQA | {"goal": [USER]}), r":1:goal: .* is not a string"),
    "not utf-8": (lines(PAIR).encode() + b'{"p\xff": 1}\n', r":2:4: byte 0xff is not UTF-8"),
    "not utf-8 after a bom": (b"\xef\xbb\xbf\xff", r":1:4: byte 0xff is not UTF-8"),
    "not utf-8 in the middle": (b"ab\n\nc\xffd\n\n", r":3:2: byte 0xff is not UTF-8"),
    "not utf-8 after a line break": (b"\n\xff", r":2:1: byte 0xff is not UTF-8"),
    "nul": (lines(PAIR | {"chosen": "a\0b"}), r":1:chosen: a NUL at 1; remove"),
    "raw nul": (lines(PAIR).replace("p\"", "\0\"", 1), r":1:\d+: not JSON"),
    "surrogate": (HALF, r":1:chosen: half a surrogate pair at 0"),
    "zero width": (lines(PAIR | {"chosen": "\u200b\ufeff \u2060"}), r":1:chosen: the \w+ is empty"),
    "fillers": (lines(PAIR | {"rejected": "\u3164\u2800"}), r":1:rejected: the \w+ is empty"),
    "margin text": (lines(PAIR | {"margin": "1"}), r":1:margin: '1' is not a number"),
    "margin bool": (lines(PAIR | {"margin": True}), r":1:margin: True is not a number"),
    "margin nan": (lines(PAIR | {"margin": float("nan")}), r":1:margin: nan is not finite"),
    "margin inf": (lines(PAIR | {"margin": -float("inf")}), r":1:margin: -inf is not finite"),
    "margin beyond float": (lines(PAIR | {"margin": 10**400}), r":1:margin: 10+\.\.\. is not fin"),
    "no role": (lines(P | {"prompt": [{"content": "x"}]}), r":1:prompt: message 1 is not an obj"),
    "no content": (lines(P | {"chosen": [USER, {"role": "assistant"}]}),
                   r":1:chosen: message 2 is not an object with role and content"),
    "content null": (lines(P | {"chosen": [GOOD | {"content": None}]}),
                     r":1:chosen: the content of message 1, null is not a string"),
    "unknown role": (lines(P | {"prompt": [USER | {"role": "x"}]}),
                     r":1:prompt: message 1 has the role 'x'; give one of system"),
    "role null": (lines(P | {"prompt": [USER | {"role": None}]}), r"message 1 has the role None"),
    "role list": (lines(P | {"prompt": [USER | {"role": []}]}), r"message 1 has the role \[\]"),
    "last not assistant": (lines(P | {"chosen": [GOOD, USER]}), r":1:chosen: the last message is"),
    "blank content": (lines(P | {"chosen": [GOOD | {"content": " "}]}), r":1:chosen: .* is empty"),
    "two answers": (lines(P | {"chosen": [GOOD, GOOD]}), r":1:chosen: two messages of the assis"),
    "other prompt": (lines(P | {"prompt": "x", "chosen": [USER, GOOD], "rejected": [USER, BAD]}),
                     r":1:chosen: its messages ask 'hi', and the prompt is 'x'; make both alike"),
    "prompt in one only": (lines(P | {"chosen": [USER, GOOD]}),
                           r":1:chosen: after the prompt comes a message of the user, 'hi', where"),
    "no question at all": (lines(P | {"prompt": [{"role": "system", "content": "be"}]}),
                           r":1:prompt: it ends with the system's message, so nothing was asked"),
    "no question": (lines({"chosen": [GOOD], "rejected": [BAD]}), r":1:prompt: no message to resp"),
}  # fmt: skip

OTHER_FORMATS = {
    "csv empty": ("a.csv", "", r":1: the file has no rows"),
    "csv header only": ("a.csv", "prompt,chosen,rejected\n", r":1: the file has no rows"),
    "csv short": ("a.csv", "prompt,chosen,rejected\np,c,r\np,c\n", r":3:3: 2 fields, but .* has 3"),
    "csv long": ("a.csv", "prompt,chosen,rejected\np,c,r,x\n", r":2:4: 4 fields, .*quotes"),
    "csv after a break": ("a.csv", 'prompt,chosen,rejected\np,"c\nd",r\np,c,c\n', r":4:rejected: "),
    "csv blank line": ("a.csv", "prompt,chosen,rejected\n\np,c,r\n", r":2:1: the line is blank"),
    "csv open quote": ("a.csv", 'prompt,chosen,rejected\np,c,"r\n', r":2: not CSV \(.*end of data"),
    "csv twice": ("a.csv", "prompt,chosen,chosen\np,c,r\n", r":1: a column is there twice"),
    "csv nul": ("a.csv", "prompt,chosen,rejected\np,c,\0\n", r":2: a NUL character"),
    "csv nul in the middle": ("a.csv", "\na\0\n\0\n", r":2: a NUL character"),
    "csv label": ("a.csv", "goal,sol1,sol2,label\ng,a,b,2\n", r":2:label: '2' is not 0 or 1"),
    "csv margin": ("a.csv", "prompt,chosen,rejected,margin\np,c,r,x\n", r":2:margin: 'x' is not a"),
    "csv margin nan": ("a.csv", "prompt,chosen,rejected,margin\np,c,r,nan\n", r":2:margin: .nan."),
    "json array": ("a.json", json.dumps([PAIR, 3]), r":row 2:1: 3 is not an object"),
    "json empty array": ("a.json", "[]", r":1: the file has no rows"),
    "json cut": ("a.json", '[\n{"a": 1},\n{"a"', r":3:5: not JSON .*correct the array"),
    "json number": ("a.json", "[" + "9" * 5000 + "]", r":1: not usable JSON"),
    "json key twice": ("a.json", '[{"a": 1, "a": 2}]', r"'a': the key is there twice"),
    "parquet": ("a.parquet", "no", r":row 1: not readable as parquet"),
    "kind of file": ("a.md", "x", r": not a .jsonl, .ndjson, .json, .csv, .tsv, .parquet, "),
}  # fmt: skip
OTHER_FORMATS |= {name: ("train.jsonl", *case) for name, case in REFUSED.items()}


@pytest.mark.parametrize("name, content, message", OTHER_FORMATS.values(), ids=OTHER_FORMATS)
def test_a_bad_file_ends_in_one_line_with_what_to_do(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message) as e:
        read(tmp_path, content, name)
    told = str(e.value)
    assert told.startswith(str(tmp_path / name)) and "; " in told
    assert "\n" not in told and len(told) < 400
    assert e.value.exit_code == errors.BAD_DATA


def test_the_reason_of_a_file_that_is_no_parquet_is_pyarrows(tmp_path):
    with pytest.raises(InputError) as error:
        read(tmp_path, "no", "a.parquet")
    reason = " ".join(str(error.value.__cause__).split())
    assert f": not readable as parquet ({reason}); write the file again" in str(error.value)


@pytest.mark.parametrize("value, told", [
    ("x" * 38, f"'{'x' * 38}'"),  # 40 characters with the quotes
    ("x" * 39, f"'{'x' * 36}..."),
    ("a\nb", r"'a\nb'"),
])  # fmt: skip
def test_a_value_is_told_on_one_line_of_40_characters(value, told):
    assert short(value) == told and len(told) <= 40


def test_a_bad_row_of_a_parquet_file_is_named(tmp_path):
    parquet(tmp_path / "a.parquet", [PAIR, PAIR | {"chosen": None}])
    with pytest.raises(InputError, match=r"a.parquet:row 2:chosen: null is not a string"):
        load_data(str(tmp_path / "a.parquet"), pairs=True)


def test_unpaired_preference_data_is_not_taken_for_completions(tmp_path):
    row = {"prompt": "p", "completion": " c", "label": False}
    with pytest.raises(InputError, match=r":1:label: .*unpaired"):
        read(tmp_path, lines(row), pairs=False)


def test_a_row_of_ten_megabytes_is_a_row(tmp_path):
    big = "x" * 10_000_000
    assert len(read(tmp_path, lines(PAIR | {"chosen": big}))[0].chosen) == 10_000_000
    table = f"prompt,chosen,rejected\np,{big},r\n"
    assert len(read(tmp_path, table, "a.csv")[0].chosen) == 10_000_000


def test_bad_rows_can_be_skipped_and_are_counted(tmp_path):
    # the third is a good one, and the first again
    bad = [PAIR | {"chosen": ""}, PAIR | {"label": 3}, PAIR | {"rejected": None}]
    skip = read_options(bad_rows="skip")
    write(tmp_path, {"train.jsonl": lines(PAIR, *bad, *[PAIR] * 6), "valid.jsonl": lines(PAIR)})
    train, _, told = load_data(str(tmp_path), pairs=True, options=skip)
    assert len(train) == 8
    first = f"{tmp_path}/train.jsonl:2:chosen: the response is empty; give it some text"
    notes = f"columns not read: label; 7 duplicate rows; 2 bad rows skipped, first: {first}"
    assert f"train.jsonl ({notes}); held" in told
    write(tmp_path, {"train.jsonl": lines(PAIR, *bad, *[PAIR] * 5)})
    wanted = r"train.jsonl: 2 of 9 rows are bad, too many to skip \(more than 20%\); the first: "
    with pytest.raises(InputError, match=f"{wanted}.*train.jsonl:2:chosen"):
        load_data(str(tmp_path), pairs=True, options=skip)


def test_a_first_row_of_no_known_kind_is_never_skipped(tmp_path):
    with pytest.raises(InputError, match=r"train.jsonl:1: of the columns a none is known"):
        read(tmp_path, lines({"a": 1}, PAIR), bad_rows="skip")


@pytest.mark.parametrize("options, message", [
    ({"columns": "choosen=x"}, "no column of ours is called choosen; ours are chat_templ"),
    ({"eval_rows": 0}, "0 held-out rows"),
])  # fmt: skip
def test_wrong_options_are_usage_errors(tmp_path, options, message):
    with pytest.raises(InputError, match=message) as e:
        read(tmp_path, lines(PAIR), **options)
    assert e.value.exit_code == errors.USAGE


def test_a_renamed_column_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r":1:chosen: .*missing \(and so is preferred"):
        read(tmp_path, lines({"prompt": "p", "rejected": "r"}), columns="chosen=preferred")
    rows = [{"prompt": "p", "preferred": "c", "rejected": "r"}, {"prompt": "p", "rejected": "r"}]
    told = r":2:chosen: the column is missing \(and so is preferred, which was to be it\); add it$"
    with pytest.raises(InputError, match=told):
        read(tmp_path, lines(*rows), columns="chosen=preferred")
