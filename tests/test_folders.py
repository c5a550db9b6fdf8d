"""Directories as `hf download`, the hub's cache and `save_to_disk` leave them, and globs."""

import gzip
import json
import shutil

import pytest
from datafiles import parquet, write
from directories import one, opened, refused, row

from data import errors
from data.sources import open_source

CARD = "---\nlicense: mit\n{}---\n# A data set\n"


# ---------------------------------------------------------------- save_to_disk


@pytest.fixture
def saved(tmp_path):
    import datasets

    def of(texts):
        return datasets.Dataset.from_list([row(text) for text in texts])

    def save(kind, **options):
        both = {"train": of("abcdef"), "test": of("gh")}
        data = datasets.DatasetDict(both) if kind == "dict" else both["train"]
        data.save_to_disk(str(tmp_path / kind), **options)
        return tmp_path / kind

    return save


def test_field_18_what_save_to_disk_writes_is_read(saved):
    assert opened(saved("dict")) == ([*"abcdef"], [*"gh"], [])
    assert opened(saved("one")) == ([*"abcdef"], None, [])
    assert opened(saved("one"), split="train")[0] == [*"abcdef"]
    assert opened(saved("dict"), "[test]")[0] == [*"gh"]
    assert opened(saved("dict"), "/test")[0] == [*"gh"]


def test_field_18_the_order_of_the_files_is_that_of_the_state(saved):
    folder = saved("one", num_shards=3)
    assert opened(folder)[0] == [*"abcdef"]
    state = json.loads((folder / "state.json").read_text())
    state["_data_files"].reverse()
    (folder / "state.json").write_text(json.dumps(state))
    assert opened(folder)[0] == [*"efcdab"]
    state["_data_files"].reverse()
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "cache-0123.arrow").write_bytes(b"what a map left")
    assert opened(folder) == ([*"abcdef"], None, [])
    state = json.loads((folder / "state.json").read_text())
    for i, entry in enumerate(state["_data_files"]):
        (folder / entry["filename"]).rename(folder / f"{i}.arrow")
        entry["filename"] = f"{i}.arrow"
    state["_data_files"].reverse()
    (folder / "state.json").write_text(json.dumps(state))
    assert opened(folder)[0] == [*"efcdab"]


def test_field_18_a_saved_data_set_that_lost_a_file_is_refused(saved):
    folder = saved("dict")
    (folder / "test" / "state.json").unlink()
    assert opened(folder, "[train]")[0] == [*"abcdef"]
    assert any("test/state.json" in note for note in opened(folder)[2])
    shutil.rmtree(folder / "train")
    assert "files of the split train are not here" in refused(folder)
    folder = saved("one")
    (file,) = folder.glob("*.arrow")
    file.unlink()
    assert f"{file}: state.json names it" in refused(folder)


def test_a_saved_data_set_has_its_splits_in_its_directory(saved):
    folder = saved("dict")
    (folder / "dataset_dict.json").write_text('{"splits": ["../one"]}')
    saved("one")
    assert "files of the split ../one are not here" in refused(folder)


@pytest.mark.parametrize("name, text, said", [
    ("state.json", "{", "not readable"),
    ("state.json", '{"_data_files": [{}]}', "not readable"),
    ("state.json", '{"_data_files": [{"filename": "a"}], "_indices_data_files": [1]}', "selection"),
    ("state.json", '{"_data_files": [{"filename": "../a.jsonl"}]}', "is not in its directory"),
    ("dataset_dict.json", "[]", "no splits in it"),
])  # fmt: skip
def test_field_18_a_damaged_state_is_one_line(tmp_path, name, text, said):
    write(tmp_path, {name: text})
    assert said in refused(tmp_path, code=errors.BAD_DATA)


def test_field_18_splits_saved_one_by_one_are_read_as_their_states_say(saved):
    folder = saved("dict", num_shards={"train": 2, "test": 1})
    (folder / "dataset_dict.json").unlink()
    file = folder / "train" / "state.json"
    state = json.loads(file.read_text())
    assert opened(folder)[:2] == ([*"abcdef"], [*"gh"])
    (folder / "train" / "other.arrow").write_bytes(b"not of the data set")
    assert opened(folder)[:2] == ([*"abcdef"], [*"gh"])
    file.write_text(json.dumps(state | {"_indices_files": [{"filename": "i.arrow"}]}))
    assert "selection of rows" in refused(folder, code=errors.BAD_DATA)


# ---------------------------------------------------------------- folders of the hub


NOT_DATA = {
    **{name: '{"splits": ["a"]}' for name in ("dataset_infos.json", "dataset_info.json")},
    **{name: "{}" for name in ("config.json", "state.json", ".gitattributes", "a.metadata")},
    "README.md": "# no yaml", "LICENSE.txt": "x", "a.lock": "", "requirements.txt": "x",
    ".cache/huggingface/download/train.jsonl": "x", ".hidden.jsonl": "x", "__x__/train.jsonl": "x",
}  # fmt: skip


@pytest.mark.parametrize("name", ["any.jsonl", "train.jsonl", "data/train.jsonl", "sub/train.csv"])
def test_field_18_files_about_the_data_are_never_data(tmp_path, name):
    text = one("a") if name.endswith("jsonl") else "prompt,chosen,rejected\na,b,c\n"
    write(tmp_path, NOT_DATA | {name: text})
    assert opened(tmp_path) == (["a"], None, [])
    assert opened(tmp_path, "/**")[::2] == (["a"], [])


def test_files_that_no_split_reads_are_named(tmp_path):
    files = ["train.jsonl", "test.jsonl", "extra.jsonl", "notes.csv", "sub/train.jsonl"]
    write(tmp_path, {name: one(name) for name in files})
    train, heldout, notes = opened(tmp_path)
    assert (train, heldout) == (["train.jsonl"], ["test.jsonl"])
    assert notes == ["not read: extra.jsonl, notes.csv, sub/train.jsonl"]
    write(tmp_path, {f"{i}.jsonl": one("x") for i in range(9)})
    assert opened(tmp_path)[2][0].endswith(" and 4 more")


def test_field_17_the_union_of_the_sub_folders_is_read_and_named(tmp_path):
    for name in ("helpful-base", "harmless-base", "helpful-online"):
        for split in ("train", "test"):
            data = gzip.compress(one(f"{name}/{split}").encode())
            write(tmp_path, {f"{name}/{split}.jsonl.gz": data})
    write(tmp_path, {"red-team-attempts/red_team_attempts.jsonl.gz": b"", "README.md": "# hh"})
    train, heldout, notes = opened(tmp_path)
    assert train == ["harmless-base/train", "helpful-base/train", "helpful-online/train"]
    assert heldout == ["harmless-base/test", "helpful-base/test", "helpful-online/test"]
    assert notes[0] == "not read: red-team-attempts/red_team_attempts.jsonl.gz"
    assert notes[1].startswith("train: 3 files, harmless-base/train.jsonl.gz, helpful-base/train")
    assert notes[2].startswith("test: 3 files, harmless-base/test.jsonl.gz")
    assert opened(tmp_path, ":helpful-base")[:2] == (["helpful-base/train"], ["helpful-base/test"])
    assert "no configuration 'helpful'" in refused(tmp_path, ":helpful")


@pytest.mark.parametrize("train, test", [
    ("train.jsonl", "test.jsonl"), ("TRAIN.JSONL", "Test.Jsonl"), ("training.jsonl", "val.jsonl"),
    ("train/0000.jsonl", "test/0000.jsonl"), ("train/a.jsonl", "eval/a.jsonl"),
    ("my-train_v2.jsonl", "my-test_v2.jsonl"), ("train_v2.jsonl", "validation_v2.jsonl"),
    ("train-1.jsonl", "test-1.jsonl"), ("a.train.jsonl", "a.dev.jsonl"),
    ("default/train/0000.jsonl", "default/test/0000.jsonl"), ("data/train.csv", "data/eval.csv"),
    ("data/train-00000-of-00001-0123456789abcdef.jsonl", "data/valid-00000-of-00001-ab.jsonl"),
    ("set/my_train-0-of-1.jsonl", "set/my_evaluation-0-of-1.jsonl"), ("train.jsonl", "dev-1.jsonl"),
    ("train.jsonl", "data/test.jsonl"),
])  # fmt: skip
def test_split_names_of_files_and_folders(tmp_path, train, test):
    text = "prompt,chosen,rejected\n{},c,r\n".format if train.endswith("csv") else one
    write(tmp_path, {train: text("train"), test: text("test")})
    alone = train == "train.jsonl" and test.startswith("data/")  # what is deeper is not looked at
    assert opened(tmp_path)[:2] == (["train"], None if alone else ["test"])


def test_field_19_families_are_told_apart_on_either_side_of_the_word(tmp_path):
    names = ["sft_train", "sft_test", "prefs-train", "prefs-test", "gen.train"]
    write(tmp_path, {f"{name}.jsonl": one(name) for name in names})
    assert opened(tmp_path, pairs=False)[:2] == (["sft_train"], ["sft_test"])
    assert opened(tmp_path, pairs=True)[:2] == (["prefs-train"], ["prefs-test"])
    assert opened(tmp_path, split="gen_train")[:2] == (["gen.train"], None)


@pytest.mark.parametrize(
    "name", ["restrain.jsonl", "latest.jsonl", "contest.jsonl", "evaluate.csv"]
)
def test_words_that_only_contain_a_split_are_not_one(tmp_path, name):
    write(tmp_path, {name: one("a"), "b.jsonl": one("b")})
    assert "no train{" in refused(tmp_path)


def test_a_name_with_two_splits_in_it_is_none(tmp_path):
    write(tmp_path, {"train_test.jsonl": one("a"), "train.jsonl": one("b")})
    assert opened(tmp_path) == (["b"], None, ["not read: train_test.jsonl"])


def test_several_files_of_a_split_are_its_union(tmp_path):
    write(tmp_path, {f"train_{i}.jsonl": one(str(i)) for i in (1, 2)})
    train, _, notes = opened(tmp_path)
    assert train == ["1", "2"] and notes == ["train: 2 files, train_1.jsonl, train_2.jsonl"]
    write(tmp_path, {"train.jsonl": one("whole")})
    assert opened(tmp_path)[0] == ["whole"]
    assert opened(tmp_path)[2] == ["not read: train_1.jsonl, train_2.jsonl"]


# ---------------------------------------------------------------- README.md


def card(tmp_path, text, *names):
    write(tmp_path, {name: one(name) for name in names})
    write(tmp_path, {"README.md": CARD.format(text)})


TWO = """configs:
- config_name: sft
  data_files:
  - {split: train, path: "sft/*.jsonl"}
- config_name: dpo
  data_files:
  - {split: train, path: [b.jsonl, a.jsonl]}
  - {split: test, path: "c*.jsonl"}
"""


def test_a_configuration_of_the_card_is_chosen_by_name(tmp_path):
    card(tmp_path, TWO, "sft/x.jsonl", "sft/y.jsonl", "a.jsonl", "b.jsonl", "c1.jsonl", "z.jsonl")
    told = refused(tmp_path)
    assert told == f"{tmp_path}: several configurations (sft, dpo); give one, as {tmp_path}:sft"
    train, heldout, notes = opened(tmp_path, ":dpo")
    assert (train, heldout) == (["b.jsonl", "a.jsonl"], ["c1.jsonl"])
    assert notes[:2] == ["configurations not read: sft", "not read: z.jsonl"]
    assert opened(tmp_path, ":sft")[:2] == (["sft/x.jsonl", "sft/y.jsonl"], None)
    assert opened(tmp_path, ":dpo[test]")[0] == ["c1.jsonl"]
    told = refused(tmp_path, ":dop")
    assert "no configuration 'dop'; did you mean dpo? it has sft, dpo: give" in told


@pytest.mark.parametrize("change, want", [
    (("- config_name: dpo\n", "- config_name: dpo\n  default: true\n"), ["b.jsonl", "a.jsonl"]),
    (("config_name: sft", "config_name: default"), ["sft/x.jsonl"]),
])  # fmt: skip
def test_the_default_configuration_needs_no_name(tmp_path, change, want):
    card(tmp_path, TWO.replace(*change), "sft/x.jsonl", "a.jsonl", "b.jsonl", "c.jsonl")
    assert opened(tmp_path)[0] == want


@pytest.mark.parametrize("files", [
    "z.jsonl", "[z.jsonl]", "'**/z.jsonl'", "{train: z.jsonl}", "[{split: train, path: z.jsonl}]",
    "[{split: any, path: [z.jsonl, '*z.jsonl']}]",
])  # fmt: skip
def test_the_only_configuration_in_any_of_its_forms(tmp_path, files):
    card(tmp_path, f"configs:\n- config_name: x\n  data_files: {files}\n", "z.jsonl", "train.jsonl")
    assert opened(tmp_path)[0] == ["z.jsonl"]
    assert "not read: train.jsonl" in opened(tmp_path)[2]
    assert opened(tmp_path, ":x")[0] == ["z.jsonl"]


def test_a_configuration_may_be_a_folder(tmp_path):
    text = "configs:\n- {config_name: x, data_dir: one}\n- {config_name: y, data_dir: two}\n"
    card(tmp_path, text, "one/train.jsonl", "two/train.jsonl")
    assert opened(tmp_path, ":y")[0] == ["two/train.jsonl"]


def test_files_of_the_card_that_were_not_downloaded(tmp_path):
    card(tmp_path, TWO, "a.jsonl", "b.jsonl")
    train, heldout, notes = opened(tmp_path, ":dpo")
    assert (train, heldout) == (["b.jsonl", "a.jsonl"], None)
    assert any("files of the split test are not here (c*.jsonl)" in note for note in notes)
    assert "configuration sft has the files sft/*.jsonl" in refused(tmp_path, ":sft")
    assert "files of the split test are not here" in refused(tmp_path, ":dpo[train,test]")
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "b.jsonl").rename(tmp_path / "c.jsonl")
    assert "files of the split train are not here (b.jsonl, a.jsonl)" in refused(tmp_path, ":dpo")


def test_a_split_of_which_one_file_is_missing_is_not_read_in_part(tmp_path):
    card(tmp_path, TWO, "b.jsonl", "c1.jsonl")
    assert "files of the split train are not here (a.jsonl)" in refused(tmp_path, ":dpo")
    assert opened(tmp_path, ":dpo[test]")[0] == ["c1.jsonl"]


def test_field_12_shards_of_a_card_are_counted_too(tmp_path):
    text = "configs:\n- config_name: x\n  data_files: 'data/train-*'\n"
    card(tmp_path, text, "data/train-00000-of-00002.jsonl")
    assert "train-00001-of-00002.jsonl: 1 of the 2 files" in refused(tmp_path)
    card(tmp_path, text, "data/train-00001-of-00002.jsonl")
    assert opened(tmp_path)[0] == [f"data/train-0000{i}-of-00002.jsonl" for i in range(2)]


@pytest.mark.parametrize("config", [
    "data_files: ../secret.jsonl", "data_files: /etc/*.json", "data_dir: ..",
    "data_files: [{split: train, path: [a/../../secret.jsonl]}]",
])  # fmt: skip
def test_a_card_names_no_file_outside_its_directory(tmp_path, config):
    write(tmp_path, {"secret.jsonl": one("secret"), "train.jsonl": one("other")})
    (tmp_path / "in").mkdir()
    card(tmp_path / "in", f"configs:\n- config_name: x\n  {config}\n", "a.jsonl")
    assert "is not below it" in refused(tmp_path, "/in", code=errors.BAD_DATA)


def test_a_configuration_may_be_called_by_a_number(tmp_path):
    card(tmp_path, "configs:\n- config_name: 2024\n  data_files: a.jsonl\n", "a.jsonl", "b.jsonl")
    assert opened(tmp_path, ":2024")[0] == opened(tmp_path)[0] == ["a.jsonl"]


def test_a_card_that_is_not_yaml_is_noted_and_the_names_of_files_decide(tmp_path):
    card(tmp_path, "a: [\n", "train.jsonl")
    train, _, notes = opened(tmp_path)
    assert train == ["train.jsonl"] and "README.md: not YAML" in notes[0]


@pytest.mark.parametrize("text", [
    "configs: [x]", "configs: [{data_files: a}]", "configs: [{config_name: a, data_files: [3]}]",
])  # fmt: skip
def test_a_card_of_another_form_is_refused(tmp_path, text):
    card(tmp_path, text + "\n", "train.jsonl")
    assert "README.md: " in refused(tmp_path, code=errors.BAD_DATA)


# ---------------------------------------------------------------- the hub's cache


def cached(folder, revision, text, main=""):
    blob = folder / "blobs" / f"{revision}{text}"
    write(blob.parent, {blob.name: one(text)})
    file = folder / "snapshots" / revision / "data" / "train-00000-of-00001.jsonl"
    file.parent.mkdir(parents=True)
    file.symlink_to(blob)
    if main:
        write(folder, {"refs/main": main})


def test_the_snapshot_of_the_hubs_cache_is_read(tmp_path):
    folder = tmp_path / "datasets--me--pairs"
    cached(folder, "abc", "first")
    assert opened(folder)[0] == ["first"]
    cached(folder, "def", "second")
    assert "which snapshot is not clear (abc, def)" in refused(folder)
    write(folder, {"refs/main": "def\n"})
    assert opened(folder)[0] == ["second"]
    assert opened(folder, "/snapshots/abc")[0] == ["first"]


# ---------------------------------------------------------------- globs


def test_field_13_a_glob_is_one_source_in_the_order_of_the_names(tmp_path):
    names = ["b.jsonl", "a.jsonl", "c/d.jsonl", "c/e.csv"]
    write(tmp_path, {name: one(name) for name in names})
    source = open_source(f"{tmp_path}/*.jsonl")
    assert source.train.name == f"{tmp_path}/*.jsonl" and source.heldout is None
    assert opened(tmp_path, "/*.jsonl")[0] == ["a.jsonl", "b.jsonl"]
    assert opened(tmp_path, "/**/*.jsonl")[0] == ["a.jsonl", "b.jsonl", "c/d.jsonl"]
    assert opened(tmp_path, "/[ab].jsonl")[2] == ["train: 2 files, a.jsonl, b.jsonl"]
    assert opened(tmp_path, "/?.jsonl")[0] == ["a.jsonl", "b.jsonl"]
    assert opened(tmp_path, "/c/d*")[0] == ["c/d.jsonl"]


def test_field_13_a_glob_of_splits_is_read_as_a_directory(tmp_path):
    write(tmp_path, {f"{name}.jsonl": one(name) for name in ("train", "test", "other")})
    assert opened(tmp_path, "/*.jsonl") == (["train"], ["test"], ["not read: other.jsonl"])
    assert opened(tmp_path, "/*.jsonl[test]")[0] == ["test"]
    assert opened(tmp_path, "/t*.jsonl")[:2] == (["train"], ["test"])
    assert opened(tmp_path, "/tr*.jsonl")[:2] == (["train"], None)


def test_field_13_all_that_a_glob_of_training_files_matches_is_read(tmp_path):
    names = ["train.jsonl", "train_v2.jsonl", "train_sft.jsonl"]
    write(tmp_path, {name: one(name) for name in names})
    assert opened(tmp_path, "/train*")[0] == ["train.jsonl", "train_sft.jsonl", "train_v2.jsonl"]


def test_what_a_glob_matches_and_cannot_read_is_named_or_refused(tmp_path):
    write(tmp_path, {"a.jsonl": one("a"), "b.md": "", "sub/c.png": "", "README.md": ""})
    assert opened(tmp_path, "/*") == (["a"], None, ["not read: b.md, sub"])
    assert "none of the 1 matches is a data file" in refused(tmp_path, "/s*")
    write(tmp_path, {"__x__/b.csv": ""})
    assert "no file matches" in refused(tmp_path, "/*/b.csv")
    assert "prompt" not in refused(tmp_path, "/__x__/*.csv", code=errors.BAD_DATA)
    told = refused(tmp_path, "/*.csv")
    assert told == f"no file matches {tmp_path}/*.csv; check the pattern"


def test_a_file_of_parquet_shards_is_read_through_a_glob(tmp_path):
    for i in range(2):
        parquet(tmp_path / f"part-{i}-of-2.parquet", [row(str(i))])
    assert opened(tmp_path, "/*.parquet")[0] == opened(tmp_path)[0] == ["0", "1"]
