"""What `--data` names: several, weights, splits, configurations; and which split is taken."""

import shutil

import pytest
from datafiles import PAIR, lines, write

from data import errors, pocket
from data.errors import InputError
from data.sources import open_source, open_sources


def prompts(part):
    return None if part is None else [columns["prompt"] for _, columns in part.rows]


def read_all(data, **options):
    """[(prompts to train on, prompts held out, weight)] of each source."""
    sources = open_sources(data, **options)
    return [(prompts(s.train), prompts(s.heldout), s.weight) for s in sources]


def refusal(data, **options):
    with pytest.raises(InputError) as error:
        read_all(data, **options)
    told = str(error.value)
    assert "\n" not in told and "; " in told
    return error.value.exit_code, told


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Files a, b, c; a directory with two families of splits; the directory to work in."""
    files = {f"{name}.jsonl": lines(PAIR | {"prompt": name}) for name in "abc"}
    for split in ("train_sft", "test_sft", "train_prefs", "test_prefs", "train_gen"):
        files[f"uf/data/{split}-0-of-1.jsonl"] = lines(PAIR | {"prompt": split})
    monkeypatch.chdir(write(tmp_path, files))
    return tmp_path


def test_field_13_several_are_read_each_with_its_weight(here):
    a, b, c = (([name], None) for name in "abc")
    assert read_all("a.jsonl") == [(*a, 1.0)]
    assert read_all("b.jsonl,a.jsonl") == [(*b, 1.0), (*a, 1.0)]
    assert read_all("a.jsonl=2,b.jsonl=0.5, c.jsonl") == [(*a, 2.0), (*b, 0.5), (*c, 1.0)]
    assert read_all("[ab].jsonl=3,c.jsonl=1e-1") == [(["a", "b"], None, 3.0), (*c, 0.1)]
    train, heldout, weight = read_all("c.jsonl,uf[train_sft]=4")[1]
    assert (train, heldout, weight) == (["train_sft"], ["test_sft"], 4.0)
    assert len(read_all("pocket=2,a.jsonl")[0][0]) == len(pocket.train_rows())
    with pytest.raises(InputError, match="2 sources; give one"):
        open_source("a.jsonl,b.jsonl")


def test_a_file_whose_name_begins_with_a_tilde_is_that_file(here):
    (here / "~a.jsonl").write_text((here / "a.jsonl").read_text())
    assert read_all("./~a.jsonl") == read_all("~a.jsonl") == [(["a"], None, 1.0)]
    assert read_all("./~*.jsonl") == [(["a"], None, 1.0)]


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "1e999", "x", "", "2x", "=2"])
@pytest.mark.parametrize("name", ["a.jsonl", "*.jsonl", "uf[train_sft]", "pocket", "me/pairs"])
def test_field_13_a_weight_is_a_finite_number_above_0(here, name, weight):
    code, told = refusal(f"b.jsonl,{name}={weight}")
    if weight != "=2":
        assert f"--data {name}={weight}: the weight {weight!r} is not a number above 0" in told
        assert code == errors.USAGE


@pytest.mark.parametrize("name", [
    "a,b.jsonl", "x=2.jsonl", "a.jsonl=2", "[ab].jsonl", "a[train]", "uf:x", "a*.jsonl",
    "a b.jsonl", "a.jsonl,b.jsonl", "lr=1e-3/a,b/t.jsonl", "a.jsonl[train,test]",
])  # fmt: skip
def test_field_13_a_path_that_is_there_as_written_is_that_path(here, name):
    file = name if name.endswith("jsonl") else f"{name}/train.jsonl"
    write(here, {file: lines(PAIR | {"prompt": "this"})})
    assert read_all(name) == [(["this"], None, 1.0)]
    assert read_all(f"{name}=2,c.jsonl") == [(["this"], None, 2.0), (["c"], None, 1.0)]
    assert read_all(f"c.jsonl,{name}")[1][0] == ["this"]
    assert read_all(f"{here}/{name}")[0][0] == ["this"]


@pytest.mark.parametrize("first, second", [
    ("a.jsonl", "a.jsonl"), ("a.jsonl", "./a.jsonl"), ("a.jsonl", "uf/../a.jsonl"),
    ("a.jsonl", "*.jsonl"), ("a.jsonl=2", "link.jsonl"), ("a.jsonl", "hard.jsonl"),
    ("uf[train_sft]", "uf/data/test_sft-0-of-1.jsonl"), ("uf[train_sft]", "./uf[test_sft]"),
    ("pocket", "pocket=2"), ("./", "a*.jsonl"),
])  # fmt: skip
def test_field_13_the_same_file_twice_is_refused(here, first, second):
    if first == "./":
        shutil.rmtree(here / "uf")
        (here / "b.jsonl").unlink(), (here / "c.jsonl").unlink()
    if "k" in second.split(".")[0]:
        (here / "link.jsonl").symlink_to("a.jsonl")
    if "hard" in second:
        (here / "hard.jsonl").hardlink_to(here / "a.jsonl")
    for data in (f"{first},{second}", f"{second},{first}"):
        code, told = refusal(data)
        assert code == errors.USAGE and "twice in one run; name it once" in told


def test_a_link_beside_its_file_is_the_same_file_in_a_glob_too(here):
    (here / "d.jsonl").symlink_to("a.jsonl")
    assert "a.jsonl and d.jsonl twice in one run" in refusal("*.jsonl")[1]


@pytest.mark.parametrize("data, code, said", [
    ("", errors.USAGE, "an empty name"),
    ("a.jsonl,", errors.USAGE, "an empty name"),
    (",a.jsonl", errors.USAGE, "an empty name"),
    ("a.jsonl,d.jsonl", errors.NO_INPUT, "no such file or directory: d.jsonl; did you mean "),
    ("a.jsonl b.jsonl", errors.NO_INPUT, "write several with commas: a.jsonl,b.jsonl"),
    ("x*.jsonl", errors.NO_INPUT, "no file matches x*.jsonl; check"),
    ("x*.jsonl[train]=2", errors.NO_INPUT, "no file matches x*.jsonl; check"),
    ("**/x.csv,a.jsonl", errors.NO_INPUT, "no file matches **/x.csv; check"),
    ("uf[nope]", errors.NO_INPUT, "uf: no split 'nope'; it has "),
    ("uf[]", errors.USAGE, "not a split or two"),
    ("uf[a,b,c]", errors.USAGE, "not a split or two"),
    ("uf[train_sft,train_sft]", errors.USAGE, "trained on and held out as well"),
    ("uf[trian_sft]", errors.NO_INPUT, "no split 'trian_sft'; did you mean train_sft? it has "),
    ("a.jsonl[test]", errors.NO_INPUT, "a.jsonl: no split 'test'; it has train"),
    ("uf:nope", errors.NO_INPUT, "uf: no configuration 'nope'"),
])  # fmt: skip
def test_a_name_that_cannot_be_used_is_one_line(here, data, code, said):
    got, told = refusal(data)
    assert got == code and said in told


@pytest.mark.parametrize("pairs, train, heldout", [
    (True, ["train_prefs"], ["test_prefs"]), (False, ["train_sft"], ["test_sft"]),
])  # fmt: skip
def test_field_19_the_split_that_suits_the_loss_is_taken(here, pairs, train, heldout):
    assert read_all("uf", pairs=pairs) == [(train, heldout, 1.0)]
    write(here, {"uf/data/train-0-of-1.jsonl": lines(PAIR | {"prompt": "train"})})
    assert read_all("uf", pairs=pairs) == [(["train"], None, 1.0)]  # of no other family
    write(here, {"uf/data/valid-0-of-1.jsonl": lines(PAIR | {"prompt": "valid"})})
    assert read_all("uf", pairs=pairs) == [(["train"], ["valid"], 1.0)]


@pytest.mark.parametrize("split, train, heldout", [
    ("train_sft", "train_sft", "test_sft"), ("train_prefs", "train_prefs", "test_prefs"),
    ("train_gen", "train_gen", None), ("test_sft", "test_sft", None),
    ("train_sft,test_prefs", "train_sft", "test_prefs"),
    (" train_gen , train_sft ", "train_gen", "train_sft"), ("TRAIN_sft", "train_sft", "test_sft"),
])  # fmt: skip
def test_field_19_a_split_may_be_named(here, split, train, heldout):
    want = [([train], heldout and [heldout], 1.0)]
    assert read_all("uf", split=split) == read_all(f"uf[{split}]") == want
    assert read_all(f"uf[{split}]", split="train_prefs") == want  # its own goes before


def names_of(source):
    return tuple(part and part.name.split("[")[1][:-1] for part in source[:2])


@pytest.mark.parametrize("splits, pairs, train, heldout", [
    ("train test validation", True, "train", "validation"),
    ("train test", True, "train", "test"),
    ("train test_prefs", True, "train", None),
    ("training eval", True, "training", "eval"),
    ("train_sft test_sft test_gen train_gen", False, "train_sft", "test_sft"),
    ("train_gen test_gen", False, "train_gen", "test_gen"),
    ("train_prefs test_prefs", False, "train_prefs", "test_prefs"),
    ("train_prefs test_sft test_prefs", True, "train_prefs", "test_prefs"),
    ("train_sft", True, "train_sft", None),
    ("train_iteration_1", True, "train_iteration_1", None),
    ("anything", True, "anything", None),
    ("test", True, None, "test"),
    ("test validation", True, None, "validation"),
    ("train_sft test_sft", True, "refused", None),
    ("train_iteration_1 test_iteration_1 train_iteration_2", True, "refused", None),
    ("train_gen test_gen", True, "refused", None),
    ("one two", False, "refused", None),
    ("one test", False, "refused", None),
])  # fmt: skip
@pytest.mark.parametrize("where", ["hub", "folder"])
def test_field_19_which_splits_are_taken(here, monkeypatch, splits, pairs, train, heldout, where):
    import datasets

    if where == "hub":
        found = {split: [PAIR | {"prompt": split}] for split in splits.split()}
        monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: found)
    data = "me/x" if where == "hub" else "x"
    for split in splits.split() if where == "folder" else ():
        write(here, {f"x/data/{split}-0-of-1.jsonl": lines(PAIR | {"prompt": split})})
    if train == "refused":
        code, told = refusal(data, pairs=pairs)
        assert code == errors.NO_INPUT and "only the splits " in told and "--split NAME" in told
        assert all(split in told for split in splits.split())
    else:
        want = [(train and [train], heldout and [heldout], 1.0)]
        assert read_all(data, pairs=pairs) == want
        notes = [note for part in open_source(data, None, pairs)[:2] if part for note in part.notes]
        others = {s for s in splits.split() if s.startswith(("train", "any"))} - {train}
        assert bool(others) == any(note.startswith("splits not read: ") for note in notes)


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


def test_field_19_a_split_of_the_hub_may_be_named(tmp_path, hub):
    files = {f"me/uf/data/{s}-00000-of-00001.jsonl": lines(PAIR | {"prompt": s})
             for s in ("train_sft", "test_sft", "train_prefs", "test_prefs")}  # fmt: skip
    write(tmp_path, files)
    assert names_of(open_source("me/uf")) == ("train_prefs", "test_prefs")
    assert names_of(open_source("me/uf", pairs=False)) == ("train_sft", "test_sft")
    assert names_of(open_source("me/uf:small@v1[train_sft]")) == ("train_sft", "test_sft")
    assert hub[-1] == ("me/uf", "small", "v1")
    assert read_all("me/uf[train_sft,test_prefs]=2") == [(["train_sft"], ["test_prefs"], 2.0)]
    assert refusal("me/uf[trainsft]")[1].startswith("me/uf: no split 'trainsft'; did you mean tra")
    assert "me/uf[test_prefs] twice in one run" in refusal("me/uf,me/uf[test_prefs]")[1]


def test_configurations_of_the_hub_are_listed_where_one_must_be_given(tmp_path, hub, monkeypatch):
    import datasets

    card = "---\nconfigs:\n- {config_name: one, data_files: a.jsonl}\n"
    card += "- {config_name: two, data_files: a.jsonl}\n---\n"
    write(tmp_path, {"me/two/README.md": card, "me/two/a.jsonl": lines(PAIR)})
    code, told = refusal("me/two")
    assert (code, told) == (errors.NO_INPUT, "me/two: several configurations; it has one, two:"
                            " give one, as me/two:one")  # fmt: skip
    error = ValueError("BuilderConfig 'x' not found. Available: ['one', 'two']")

    def load_dataset(*args, **options):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert refusal("me/two:x")[1].startswith("me/two: no configuration 'x'; it has one, two: give")
    error = ConnectionError("offline")
    assert "--local-dir two`, then give ./two:x as the data" in refusal("me/two:x")[1]


def test_a_name_of_ours_is_never_a_file(tmp_path, monkeypatch):
    write(tmp_path, {"pocket/train.jsonl": lines(PAIR)})
    monkeypatch.chdir(tmp_path)
    assert open_source("pocket").train.name == "pocket[train]"
    assert read_all("./pocket")[0][0] == ["p"]
    assert names_of(open_source("pocket[heldout]")) == ("heldout", None)


def test_rows_are_read_when_they_are_asked_for(tmp_path):
    write(tmp_path, {"train.jsonl": "not read", "test.jsonl": "not read", "b.jsonl": "nor this"})
    sources = open_sources(f"{tmp_path},{tmp_path}/b.jsonl")
    with pytest.raises(InputError, match="train.jsonl:1:1: not JSON"):
        next(iter(sources[0].train.rows))
