"""Tables in several files: all of them are there, or the first that is missing is named."""

import pytest
from datafiles import write
from directories import one, opened, prompts, refused

from data.sources import open_sources


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".jsonl.gz", ".JSON"])
@pytest.mark.parametrize("base", ["train", "train_prefs", "data/train", "data/train_prefs"])
@pytest.mark.parametrize("there", [[0], [1], [2], [0, 1], [0, 2], [1, 2]])
def test_field_12_a_missing_shard_is_named(tmp_path, suffix, base, there):
    write(tmp_path, {f"{base}-0000{i}-of-00003{suffix}": "never read" for i in there})
    missing = min({0, 1, 2} - set(there))
    told = refused(tmp_path)
    assert told.startswith(f"{tmp_path}/{base}-0000{missing}-of-00003{suffix}: ")
    # by a glob that matches what there is, and by its own name
    assert refused(tmp_path, f"/{base}*") == told
    for i in there:
        left = min({0, 1, 2} - {i})
        told = refused(tmp_path, f"/{base}-0000{i}-of-00003{suffix}")
        assert f"{base}-0000{left}-of-00003{suffix}: 2 of the 3 files" in told
        assert "give the directory or a glob" in told


def test_field_12_a_whole_set_is_read_in_the_order_of_its_numbers(tmp_path):
    for count in (11, 1):
        folder = tmp_path / str(count)
        names = {f"train-{i}-of-{count}.jsonl": one(str(i)) for i in range(count)}
        write(folder, names)
        want = [str(i) for i in range(count)]
        assert opened(folder)[0] == want
        assert opened(folder, "/*.jsonl")[0] == want
    assert opened(tmp_path / "1", "/train-0-of-1.jsonl")[0] == ["0"]


def test_field_12_shards_are_counted_from_0(tmp_path):
    write(tmp_path, {f"train-0000{i}-of-00003.jsonl": one(str(i)) for i in (1, 2, 3)})
    assert "/train-00000-of-00003.jsonl: 1 of the 3 files" in refused(tmp_path)


def test_field_12_shards_given_one_by_one_are_a_set_too(tmp_path):
    write(tmp_path, {f"a-{i}-of-2.jsonl": one(str(i)) for i in range(2)})
    sources = open_sources(f"{tmp_path}/a-0-of-2.jsonl,{tmp_path}/a-1-of-2.jsonl")
    assert [prompts(source.train) for source in sources] == [["0"], ["1"]]


@pytest.mark.parametrize("more, said", [
    ("train-00000-of-00002-abc.jsonl", "are the same piece; remove one"),
    ("train-00000-of-00001.jsonl", "are of sets of"),
    ("train-00002-of-00002.jsonl", "numbered beyond its set of 2"),
    ("train.jsonl", "both "),
    ("train.csv", "both "),
    ("train-00000-of-00002.csv", "both "),
])  # fmt: skip
def test_field_12_a_set_with_something_else_in_it_is_refused(tmp_path, more, said):
    write(tmp_path, {f"train-0000{i}-of-00002.jsonl": one(str(i)) for i in range(2)})
    assert opened(tmp_path)[0] == ["0", "1"]
    write(tmp_path, {more: one("more")})
    assert said in refused(tmp_path)


def test_a_split_that_is_not_read_may_lack_files(tmp_path):
    names = ["train_sft-0-of-1", "test_sft-0-of-1", "train_gen-0-of-9"]
    write(tmp_path, {f"data/{name}.jsonl": one(name) for name in names})
    assert opened(tmp_path, pairs=False)[:2] == ([names[0]], [names[1]])
    assert "train_gen-1-of-9.jsonl" in refused(tmp_path, "[train_gen]")


def test_of_in_a_name_does_not_make_a_shard(tmp_path):
    write(tmp_path, {"best-of-5.jsonl": one("a"), "gpt4-of-2024.jsonl": one("b")})
    assert opened(tmp_path, "/best-of-5.jsonl")[0] == ["a"]
    assert opened(tmp_path, "/gpt4-of-2024.jsonl")[0] == ["b"]
