"""Where rows come from: directories, single files that are split, the hub, the pocket world."""

import pytest
from datafiles import BAD, GOOD, PAIR, PIQA, USER, bare, lines, parquet, write

from data import errors, pocket
from data.errors import InputError
from data.records import Record, hold_out, load_data, load_heldout
from data.sources import open_source


def piqa_files(**changes):
    rows = [{key: row[key] for key in ("goal", "sol1", "sol2")} for row in [PIQA] * 2]
    files = {"train.jsonl": lines(*rows), "train-labels.lst": "0\n1\n", "tests.jsonl": lines(*rows)}
    files |= {"valid.jsonl": lines(*rows[:1]), "valid-labels.lst": "1"}
    return {name: text for name, text in (files | changes).items() if text is not None}


def test_the_official_piqa_directory(tmp_path):
    train, heldout, told = load_data(str(write(tmp_path, piqa_files())), pairs=True)
    assert [row.chosen for row in train] == [" one", " two"]
    assert [row.chosen for row in heldout] == [" two"]
    assert "train: 2 rows of" in told and "held out: 1 row of" in told
    assert "(1 of them also in train)" in told


@pytest.mark.parametrize("name, content, message", [
    ("train-labels.lst", "0\n", r"train-labels.lst:2: 1 labels for 2 rows of .*/train.jsonl; give"),
    ("train-labels.lst", "0\n1\n0\n", r"train-labels.lst:3: 3 labels for 2 rows"),
    ("train-labels.lst", "", r"train-labels.lst:1: 0 labels for 2 rows"),
    ("train-labels.lst", "0\n2\n", r"train-labels.lst:2: '2' is not 0 or 1"),
    ("train-labels.lst", "0\n\n1\n", r"train-labels.lst:2: '' is not 0 or 1"),
    ("train-labels.lst", b"0\n\xff\n", r"train-labels.lst:2:1: byte 0xff is not UTF-8"),
    ("train-labels.lst", None, r"train.jsonl:1:label: the column is missing; .*train-labels.lst"),
    ("train.jsonl", lines(PIQA, PIQA), r"train.jsonl:1:label: also given by .*train-labels.lst"),
])  # fmt: skip
def test_label_files_that_do_not_fit(tmp_path, name, content, message):
    write(tmp_path, piqa_files(**{name: content}))
    with pytest.raises(InputError, match=message):
        load_data(str(tmp_path), pairs=True)


@pytest.mark.parametrize("names", [
    ("train.jsonl", "valid.jsonl"),
    ("train.json", "dev.jsonl"),
    ("data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl"),  # a hub repository
    ("data/train_prefs-00000-of-00001.jsonl", "data/test_prefs-00000-of-00001.jsonl"),
    ("plain_text/train.jsonl", "plain_text/validation.jsonl"),
])  # fmt: skip
def test_directories_are_read_by_the_names_of_splits(tmp_path, names):
    write(tmp_path, {names[0]: lines(PAIR, PIQA | PAIR), names[1]: lines(PAIR)})
    write(tmp_path, {".cache/train.lock": "", "README.md": ""})
    train, heldout, told = load_data(str(tmp_path), pairs=True)
    assert (len(train), len(heldout)) == (2, 1) and "1 duplicate row" in told


def test_shards_are_read_in_order(tmp_path):
    for i in range(3):
        name = f"train-0000{i}-of-00003.jsonl"
        write(tmp_path, {name: lines(PAIR | {"prompt": str(i)}), "test.jsonl": lines(PAIR)})
    assert [row.prompt for row in load_data(str(tmp_path), pairs=True)[0]] == ["0", "1", "2"]


@pytest.mark.parametrize("files, message", [
    ({"a.md": ""}, r"no train\{.jsonl,.ndjson,.json,.csv,.tsv,.parquet,.arrow,.txt\} in this dir"),
    ({"a.jsonl": "", "b.jsonl": ""}, "no train"),
    ({"train.csv": "", "train.jsonl": ""}, "both train.jsonl and train.csv; name the one"),
    ({"valid.jsonl": ""}, "there is no training part"),
])  # fmt: skip
def test_directories_that_leave_a_doubt_are_refused(tmp_path, files, message):
    with pytest.raises(InputError, match=message):
        load_data(str(write(tmp_path, files)), pairs=True)


def test_eval_data_may_be_a_file_or_a_directory_of_either_kind(tmp_path):
    own = PAIR | {"prompt": "own"}
    files = {"a.jsonl": lines(PAIR), "both/train.jsonl": lines(PAIR), "both/test.jsonl": lines(own)}
    files |= {"only/train.jsonl": lines(own), "any/thing.jsonl": lines(own), "b.jsonl": lines(own)}
    write(tmp_path, files)
    for other in ("both", "only", "any", "b.jsonl"):
        train, heldout, _ = load_data(str(tmp_path / "a.jsonl"), str(tmp_path / other), pairs=True)
        assert (train[0].prompt, heldout[0].prompt) == ("p", "own")
        assert [record.prompt for record in load_heldout(str(tmp_path / other))[0]] == ["own"]


def test_held_out_rows_are_pairs_and_the_first_bad_one_ends_the_reading(tmp_path):
    completion = {"prompt": "p", "completion": " c"}
    write(tmp_path, {"a.jsonl": lines(completion), "b.jsonl": lines(PAIR, PAIR | {"chosen": ""})})
    with pytest.raises(InputError, match=r"a.jsonl:1:rejected: the column is missing"):
        load_heldout(str(tmp_path / "a.jsonl"))
    with pytest.raises(InputError, match=r"b.jsonl:2:chosen: the response is empty"):
        load_heldout(str(tmp_path / "b.jsonl"))


def test_where_the_rows_are_from_is_told_by_the_name_of_the_file_or_of_its_shards(tmp_path):
    files = {"one/thing.jsonl": lines(PAIR), "two/train.jsonl": lines(PAIR)}
    files |= {f"three/train-0000{i}-of-00002.jsonl": lines(PAIR) for i in range(2)}
    write(tmp_path, files)
    names = {"one": "thing.jsonl", "two": "train.jsonl", "three": "train-*.jsonl"}
    for folder, name in names.items():
        told = load_heldout(str(tmp_path / folder))[1]
        assert told.removesuffix(" (1 duplicate row)") == f"{tmp_path}/{folder}/{name}"


def test_eval_rows_takes_the_first_of_a_given_part(tmp_path):
    rows = [PAIR | {"prompt": str(i)} for i in range(5)]
    write(tmp_path, {"train.jsonl": lines(PAIR), "valid.jsonl": lines(*rows)})
    _, heldout, told = load_data(str(tmp_path), pairs=True, eval_rows=2)
    assert [row.prompt for row in heldout] == ["0", "1"] and "held out: the first 2 rows of" in told
    _, heldout, told = load_data(str(tmp_path), pairs=True, eval_rows=5)
    assert len(heldout) == 5 and "held out: 5 rows of" in told  # they are all there are
    assert len(load_data(str(tmp_path), pairs=True, eval_rows=1)[1]) == 1


def test_a_single_file_is_split_once_by_seed_and_says_so(tmp_path):
    rows = [PAIR | {"prompt": str(i)} for i in range(40)]
    path = str(write(tmp_path, {"a.jsonl": lines(*rows)}) / "a.jsonl")
    train, heldout, told = load_data(path, pairs=True)
    assert len(heldout) == 4
    assert told == f"train: 36 rows of {path}; held out: 4 random rows of the same, seed 0"
    assert {row.prompt for row in train + heldout} == {str(i) for i in range(40)}
    assert len(train) == 36
    assert load_data(path, pairs=True)[:2] == (train, heldout)
    assert load_data(path, pairs=True, seed=1)[1] != heldout
    assert len(load_data(path, pairs=True, eval_rows=2)[1]) == 2


def test_no_more_than_500_rows_of_a_single_file_are_held_out_unless_asked(tmp_path):
    write(tmp_path, {"a.jsonl": lines(*(PAIR | {"prompt": str(i)} for i in range(6000)))})
    train, heldout, told = load_data(str(tmp_path / "a.jsonl"), pairs=True)
    assert (len(train), len(heldout)) == (5500, 500)
    assert told.startswith("train: 5,500 rows of ") and "held out: 500 random rows" in told
    assert len(load_data(str(tmp_path / "a.jsonl"), pairs=True, eval_rows=550)[1]) == 550


@pytest.mark.parametrize("count, want", [(2, 1), (19, 1), (20, 2), (6000, 500)])
def test_how_many_rows_are_held_out(count, want):
    records = [Record(str(i), "a", "b") for i in range(count)]
    train, heldout = hold_out(records, 500, 0)
    assert (len(train), len(heldout)) == (count - want, want)


def test_rows_of_one_prompt_stay_on_one_side():
    records = [Record(str(i // 4), str(i), "b") for i in range(80)]
    train, heldout = hold_out(records, 500, 3)
    assert heldout and not {r.prompt for r in train} & {r.prompt for r in heldout}
    one_prompt = [Record("", str(i), "b") for i in range(20)]
    assert [len(part) for part in hold_out(one_prompt, 500, 0)] == [18, 2]


def test_one_row_cannot_be_split(tmp_path):
    path = str(write(tmp_path, {"a.jsonl": lines(PAIR)}) / "a.jsonl")
    with pytest.raises(InputError, match="a.jsonl:1: one row cannot be split"):
        load_data(path, pairs=True)


@pytest.mark.parametrize("name, guess", [
    ("./tain.jsonl", "did you mean train.jsonl?"),
    ("~/nosuch", "check the path"),
    ("~nosuch/x.jsonl", "check the path"),
    (".nosuch", "check the path"),
    ("trian.jsonl", "did you mean train.jsonl?"),
    ("sub/trian.jsonl", "did you mean sub/train.jsonl?"),
    ("sub/other", "check the path"),
    ("a/b/c", "check the path"),
    ("./nosuch.csv", "check the path"),
])  # fmt: skip
def test_what_looks_like_a_path_is_never_looked_up_on_the_hub(tmp_path, monkeypatch, name, guess):
    write(tmp_path, {"train.jsonl": "", "sub/train.jsonl": ""})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("data.sources._hub", None)
    with pytest.raises(InputError) as e:
        load_data(name, pairs=True)
    assert e.value.exit_code == errors.NO_INPUT
    assert str(e.value) == f"no such file or directory: {name}; {guess}"


# ---------------------------------------------------------------- the hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """`datasets.load_dataset` itself, reading a local folder in place of the hub's repository."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    real, asked = datasets.load_dataset, []

    def load_dataset(path, name=None, revision=None):
        asked.append((path, name, revision))
        return real(str(tmp_path / path), cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_piqa_is_the_hub_data_set_that_lm_eval_reads(tmp_path, hub):
    (tmp_path / "baber/piqa").mkdir(parents=True)
    for split in ("train", "validation", "test"):
        path = tmp_path / f"baber/piqa/{split}-00000-of-00001.parquet"
        parquet(path, [PIQA, PIQA | {"label": 1}])
    train, heldout, told = load_data("piqa", pairs=True)
    assert hub == [("baber/piqa", None, None)]
    assert [bare(row) for row in train] == [
        ("Question: g\nAnswer:", " one", " two"),
        ("Question: g\nAnswer:", " two", " one"),
    ]
    assert train[1].where == "baber/piqa[train]:row 2"
    assert heldout[0].where == "baber/piqa[validation]:row 1"
    assert told.startswith("train: 2 rows of baber/piqa[train]; held out: 2 rows of")
    assert not any(part.notes for part in open_source("piqa")[:2])  # the test split is no news


def test_hub_rows_are_checked_like_all_others(tmp_path, hub):
    write(tmp_path, {"me/pairs/train.jsonl": lines(PAIR, PAIR | {"chosen": " "})})
    with pytest.raises(InputError, match=r"me/pairs:small@v1\[train\]:row 2:chosen: the response"):
        load_data("me/pairs:small@v1", pairs=True)
    assert hub == [("me/pairs", "small", "v1")]


def test_messages_from_the_hub(tmp_path, hub):
    row = {"prompt": "hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]}
    write(
        tmp_path,
        {
            "me/chat/data/train_prefs.jsonl": lines(row),
            "me/chat/README.md": """---
configs:
- config_name: default
  data_files:
  - {split: train_prefs, path: data/train_prefs.jsonl}
  - {split: test_prefs, path: data/train_prefs.jsonl}
---
""",
        },
    )
    train, heldout, _ = load_data("me/chat", pairs=True)
    assert bare(train[0]) == bare(heldout[0]) == ([USER], [GOOD], [BAD])


def test_the_folder_to_download_to_is_the_last_part_of_the_name(monkeypatch):
    import datasets

    def load_dataset(*args, **options):
        raise ConnectionError

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError, match=r"dataset imdb --local-dir imdb`, then give ./imdb as"):
        load_data("imdb", pairs=True)


@pytest.mark.parametrize("error, code, message", [
    (ConnectionError("Couldn't reach"), errors.UNAVAILABLE,
     "run `hf download --repo-type dataset baber/piqa --local-dir piqa`, then give ./piqa as"),
    (FileNotFoundError("Dataset 'baber/piqa'\ndoesn't exist"), errors.NO_INPUT, "doesn't exist"),
    (ValueError("BuilderConfig 'x' not found"), errors.NO_INPUT, "BuilderConfig 'x' not found"),
    (RuntimeError("Dataset scripts are no longer supported"), errors.NO_INPUT, "scripts are no"),
])  # fmt: skip
def test_what_the_hub_refuses_is_one_line(monkeypatch, error, code, message):
    import datasets

    def load_dataset(*args, **options):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError, match=message) as e:
        load_data("piqa", pairs=True)
    assert e.value.exit_code == code and "\n" not in str(e.value)


def test_the_only_split_of_a_data_set_is_taken_whatever_its_name(tmp_path, hub):
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n"
    card += "  - {split: calibration, path: a.jsonl}\n"
    write(tmp_path, {"me/odd/README.md": card + "---\n", "me/odd/a.jsonl": lines(PAIR)})
    source = open_source("me/odd")
    assert source.train.name == "me/odd[calibration]" and source.heldout is None


def test_pocket():
    train, heldout, told = load_data("pocket", pairs=True)
    for records, rows in ((train, pocket.train_rows()), (heldout, pocket.heldout_rows())):
        expected = [(row["prompt"], row["chosen"], row["rejected"]) for row in rows]
        assert [bare(record) for record in records] == expected
    assert [train[0].where, train[1].where] == ["pocket[train]:row 1", "pocket[train]:row 2"]
    assert heldout[0].where == "pocket[heldout]:row 1"
    assert told == (
        f"train: {len(train):,} rows of pocket[train]; held out: {len(heldout):,} rows of"
        " pocket[heldout]"
    )
