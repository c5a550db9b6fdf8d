"""Files of every suffix and compression hold the same rows, or are refused in one line."""

import bz2
import csv
import gzip
import io
import json
import lzma

import pyarrow
import pytest
from datafiles import PAIR, lines, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import errors
from data.errors import InputError
from data.readers import READERS, read_file

ROWS = [
    {"prompt": "a, \"b\"", "chosen": "ü\u2028x", "rejected": "tab\tand\nline"},
    {"prompt": " ", "chosen": "2", "rejected": "null"},
    {"prompt": "p", "chosen": "c", "rejected": "r"},
]  # fmt: skip


def zst(data):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


PACK = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zst}


def arrow(rows, file=False):
    table, sink = pyarrow.Table.from_pylist(rows), pyarrow.BufferOutputStream()
    new = pyarrow.ipc.new_file if file else pyarrow.ipc.new_stream
    with new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue().to_pybytes()


def parquet(rows):
    from pyarrow.parquet import write_table

    sink = pyarrow.BufferOutputStream()
    write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def cells(rows, delimiter):
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def columns(rows):
    return {name: [row[name] for row in rows] for name in rows[0]}


def table_forms(rows):
    """The forms in which one .json file holds rows, as pandas and others write them."""
    names = list(rows[0])
    by_place = {n: {str(i): r[n] for i, r in enumerate(rows)} for n in names}
    return {
        "array": rows,
        "under a key": {"version": "1.0", "data": rows},
        "columns": columns(rows),
        "pandas columns": by_place,
        "pandas index": {str(i): row for i, row in enumerate(rows)},
        "pandas split": {
            "columns": names,
            "index": list(range(len(rows))),
            "data": [[row[n] for n in names] for row in rows],
        },
    }


WRITE = {
    ".jsonl": lambda rows: lines(*rows).encode(),
    ".ndjson": lambda rows: lines(*rows).encode(),
    ".json": lambda rows: json.dumps(rows).encode(),
    ".csv": lambda rows: cells(rows, ","),
    ".tsv": lambda rows: cells(rows, "\t"),
    ".parquet": parquet,
    ".arrow": arrow,
    ".txt": lambda rows: "\n\n".join(row["prompt"] for row in rows).encode(),
}


def read(folder, name, data):
    write(folder, {name: data})
    return [row for _, row in read_file(folder / name)]


def refused(folder, name, data):
    with pytest.raises(InputError) as error:
        read(folder, name, data)
    told = str(error.value)
    assert told.startswith(str(folder / name)) and "; " in told and "\n" not in told
    assert error.value.exit_code == errors.BAD_DATA
    return told.removeprefix(str(folder / name))


def test_every_suffix_has_a_writer_here():
    assert WRITE.keys() == READERS.keys()


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("suffix", WRITE)
def test_field_17_the_same_rows_come_out_of_every_suffix(tmp_path, suffix, packed):
    rows = [row for row in ROWS if row["prompt"].strip()]
    want = [{"text": row["prompt"]} for row in rows] if suffix == ".txt" else rows
    for name in (f"a{suffix}{packed}", f"A{suffix.upper()}{packed.upper()}"):
        assert read(tmp_path, name, PACK[packed](WRITE[suffix](rows))) == want


def test_arrow_files_are_read_as_arrow_streams_are(tmp_path):
    for name, data in (("a.arrow", arrow(ROWS)), ("b.arrow", arrow(ROWS, file=True))):
        assert read(tmp_path, name, data) == ROWS
        where = [where for where, _ in read_file(tmp_path / name)]
        assert where == [f"{tmp_path / name}:row {i}" for i in (1, 2, 3)]


@pytest.mark.parametrize("packed", PACK)
def test_lines_of_compressed_files_are_numbered_as_they_are_inside(tmp_path, packed):
    text = lines(*ROWS) + "{\n" + lines(PAIR)
    assert refused(tmp_path, f"a.jsonl{packed}", PACK[packed](text.encode())).startswith(":4:2: ")
    text = "a,b\n1,2\n\n3,4\n"
    assert refused(tmp_path, f"a.csv{packed}", PACK[packed](text.encode())).startswith(":3:1: ")


@pytest.mark.parametrize("packed", [packed for packed in PACK if packed])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.6, 0.9, 0.99])
def test_an_archive_that_is_cut_short_is_one_line(tmp_path, packed, keep):
    whole = PACK[packed](lines(*({"n": i, "t": str(i * 7919)} for i in range(2000))).encode())
    cut = whole[: max(8, int(len(whole) * keep))]
    assert "damaged or cut short (" in refused(tmp_path, f"a.jsonl{packed}", cut)
    assert "damaged or cut short (" in refused(tmp_path, f"a.jsonl{packed}", whole[:-1])
    assert "damaged or cut short (" in refused(tmp_path, f"a.jsonl{packed}", whole + b"rest")


@pytest.mark.parametrize("packed", PACK)
def test_archives_of_several_members_are_read_whole(tmp_path, packed):
    first, second = (PACK[packed](lines(row).encode()) for row in ROWS[:2])
    assert read(tmp_path, f"a.jsonl{packed}", first + second) == ROWS[:2]


LIES = {
    "parquet": (parquet(ROWS), "this is a parquet file"),
    "arrow file": (arrow(ROWS, file=True), "this is an arrow file"),
    "arrow stream": (arrow(ROWS), "this is an arrow stream"),
    "gzip": (gzip.compress(b"{}"), "this is a gzip file"),
    "bzip2": (bz2.compress(b"{}"), "this is a bzip2 file"),
    "xz": (lzma.compress(b"{}"), "this is an xz file"),
    "zstandard": (zst(b"{}"), "this is a zstandard file"),
    "zip": (b"PK\x03\x04rest", "this is a zip archive"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "Git LFS pointer"),
    "web page": (b"\n<!DOCTYPE html>\n<html>", "this is a web page"),
    **{
        code: ('{"a": 1}'.encode(code), f"this is {code[:6].upper()} text")
        for width in (16, 32) for code in (f"utf-{width}", f"utf-{width}-le", f"utf-{width}-be")
    },
    "tar": (b"a\n" * 128 + b"\0ustar" + b"\0" * 200, "this is a tar archive"),
}  # fmt: skip


@pytest.mark.parametrize("data, said", LIES.values(), ids=LIES)
@pytest.mark.parametrize("suffix", [*WRITE, ".jsonl.gz", ".parquet.gz"])
def test_a_file_under_another_kinds_name_is_called_what_it_is(tmp_path, suffix, data, said):
    if said.endswith(suffix.removeprefix(".") + " file") or (suffix, said[-12:]) == (
        ".arrow", "arrow stream",
    ):  # fmt: skip
        return  # no lie
    if suffix.endswith(".gz"):
        data = gzip.compress(data)
        if said.endswith(suffix.split(".")[1] + " file"):
            return
    assert said in refused(tmp_path, f"a{suffix}", data)


@pytest.mark.parametrize("begin", ["BZhang", "PAR1", "ARROW1", "PKs", "<b>", "ustar"])
def test_texts_that_begin_as_other_files_do_are_texts(tmp_path, begin):
    assert read(tmp_path, "a.txt", begin) == [{"text": begin}]
    assert read(tmp_path, "a.csv", f"{begin},b\nx,y\n") == [{begin: "x", "b": "y"}]


@pytest.mark.parametrize("packed", [packed for packed in PACK if packed])
def test_a_plain_file_that_is_called_compressed_is_told(tmp_path, packed):
    told = refused(tmp_path, f"a.jsonl{packed}", lines(PAIR).encode())
    assert told.startswith(": not ") and "its bytes are something else" in told
    other = gzip.compress(b"{}") if packed != ".gz" else lzma.compress(b"{}")
    assert "data, this is a" in refused(tmp_path, f"a.jsonl{packed}", other)


def test_an_arrow_stream_that_lost_its_end_is_not_taken_for_a_shorter_one(tmp_path):
    whole = arrow(ROWS)
    for cut in range(8, len(whole), 8):
        told = refused(tmp_path, "a.arrow", whole[:cut])
        assert "not readable as arrow" in told
    told = refused(tmp_path, "b.arrow", arrow(ROWS, file=True)[:-8])
    assert "not readable as arrow" in told


def test_a_column_that_is_there_twice_is_refused_in_tables_too(tmp_path):
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, names=["x", "x"])
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    told = refused(tmp_path, "a.arrow", sink.getvalue().to_pybytes())
    assert told.startswith(": a column is there twice")


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\n \n\t\n", "\r\n\r\n"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".txt"])
def test_blank_lines_may_end_a_file_and_stand_nowhere_else(tmp_path, suffix, end):
    rows = [ROWS[2]] * 2 if suffix != ".json" else ROWS[1:]
    text = WRITE[suffix](rows).decode().rstrip()
    want = [{"text": row["prompt"]} for row in rows] if suffix == ".txt" else rows
    assert read(tmp_path, f"a{suffix}", text + end) == want
    if suffix in (".jsonl", ".csv", ".tsv"):
        first, rest = text.split("\n", 1)
        told = refused(tmp_path, f"a{suffix}", f"{first.rstrip()}\n\n{rest}{end}")
        assert told.startswith(":2:1: the line is blank")


@pytest.mark.parametrize("form", table_forms(ROWS))
@pytest.mark.parametrize("indent", [None, 1, 4])
def test_a_json_file_of_any_form_has_the_same_rows(tmp_path, form, indent):
    text = json.dumps(table_forms(ROWS)[form], indent=indent)
    assert read(tmp_path, "a.json", text) == ROWS
    notes = []
    list(read_file(tmp_path / "a.json", notes))
    assert bool(notes) == (form != "array")


def test_where_the_rows_lie_in_a_json_file_is_noted(tmp_path):
    write(tmp_path, {"a.json": json.dumps({"version": 1, "data": ROWS})})
    notes = []
    assert [where for where, _ in read_file(tmp_path / "a.json", notes)][2].endswith("a.json:row 3")
    assert notes == [f"{tmp_path}/a.json: rows of its key 'data'"]


MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
ONE_ROW = {
    "strings": PAIR,
    "messages": {"messages": MESSAGES},
    "conversations": {"id": "1", "conversations": [{"from": "human", "value": "q"}]},
    "three chats": {"prompt": MESSAGES[:1], "chosen": MESSAGES[1:], "rejected": MESSAGES[1:]},
    "tools": {"prompt": "p", "completion": "c", "tools": [{"type": "function"}]},
    "messages and tools": {"messages": MESSAGES, "tools": [{"type": "function"}]},
    "tags": PAIR | {"tags": ["a", "b"]},
    "meta": PAIR | {"meta": {"0": 1}},
}


@pytest.mark.parametrize("row", ONE_ROW.values(), ids=ONE_ROW)
@pytest.mark.parametrize("indent", [None, 2])
def test_one_row_alone_is_a_row_and_not_a_table(tmp_path, row, indent):
    assert read(tmp_path, "a.json", json.dumps(row, indent=indent)) == [row]


TABLES = {
    "two lists": ({"train": ROWS, "test": ROWS}, "rows under several keys ('train', 'test')"),
    "unequal": ({"prompt": ["a", "b"], "chosen": ["c"]}, "'prompt' has 2, 'chosen' has 1"),
    "named rows": ({"x": PAIR, "y": PAIR}, "an object of objects"),
    "other rows": ({"a": {"0": "x", "1": "y"}, "b": {"0": "z"}}, "'b' has other rows"),
    "short row": ({"columns": ["a", "b"], "data": [["x"]]}, ":row 1: not 2 values"),
    "twice": ({"columns": ["a", "a"], "data": [["x", "y"]]}, "a column is there twice"),
    "tight": ({"columns": ["a"], "data": [["x"]], "index_names": [None]}, "not known"),
    "not rows": ({"data": [PAIR, 3]}, ":row 2:1: 3 is not an object"),
}  # fmt: skip


@pytest.mark.parametrize("value, said", TABLES.values(), ids=TABLES)
def test_a_json_object_that_is_no_table_is_refused(tmp_path, value, said):
    assert said in refused(tmp_path, "a.json", json.dumps(value))


def test_a_list_beside_the_rows_is_not_their_column(tmp_path):
    value = {"data": ROWS, "sources": ["a", "b"]}
    assert read(tmp_path, "a.json", json.dumps(value)) == ROWS


def test_a_quoted_empty_cell_is_a_row_of_a_table_with_one_column(tmp_path):
    rows = [{"text": text} for text in ("a", "", "b", "")]
    assert read(tmp_path, "a.csv", 'text\na\n""\nb\n""\n\n') == rows


def test_a_column_of_objects_is_a_column(tmp_path):
    value = {"a": ["x", "y"], "meta": [{"n": 1}, {"n": 2}]}
    want = [{"a": "x", "meta": {"n": 1}}, {"a": "y", "meta": {"n": 2}}]
    assert read(tmp_path, "a.json", json.dumps(value)) == want


texts = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1)
plain = st.lists(st.fixed_dictionaries({"prompt": texts, "chosen": texts}), min_size=1, max_size=4)
WITHOUT = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@WITHOUT
@given(
    rows=plain, suffix=st.sampled_from(sorted({*WRITE} - {".txt"})), pack=st.sampled_from([*PACK])
)
def test_whatever_texts_are_written_are_read(tmp_path, rows, suffix, pack):
    assert read(tmp_path, f"a{suffix}{pack}", PACK[pack](WRITE[suffix](rows))) == rows


@WITHOUT
@given(rows=plain, form=st.sampled_from([*table_forms(ROWS)]), indent=st.sampled_from([None, 2]))
def test_whatever_texts_a_table_holds_are_its_rows(tmp_path, rows, form, indent):
    assert read(tmp_path, "a.json", json.dumps(table_forms(rows)[form], indent=indent)) == rows


@pytest.mark.parametrize("name", ["dataset_info.json", "state.json", "config.json"])
def test_a_file_about_the_data_is_not_read_even_when_it_is_named(tmp_path, name):
    write(tmp_path, {name: lines(PAIR)})
    with pytest.raises(InputError, match=f"{name}: this file is about the data .*; give its dir"):
        read_file(tmp_path / name)


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path):
    for name in ("a.jsonl", "a.parquet", "a.arrow.gz"):
        with pytest.raises(InputError) as error:
            list(read_file(tmp_path / name))
        assert error.value.exit_code == errors.NO_INPUT
