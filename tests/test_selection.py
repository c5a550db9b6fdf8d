"""Corners of which files and splits are taken: those that a change of one condition would miss."""

import lzma

import pytest
from datafiles import PIQA, lines, write
from directories import one, opened, refused

from data.errors import InputError
from data.selection import choose
from data.sources import open_source


def test_the_only_training_split_of_a_data_set_with_more_is_not_taken_for_the_one_meant():
    names = ["train_iteration_1", "test_iteration_1"]
    with pytest.raises(InputError, match="only the splits train_iteration_1, test_iteration_1"):
        choose("me/x", names, None, True)
    assert choose("x", names, None, True, loose=True) == (*names,)  # of the names of files


def test_shards_are_named_by_their_split_and_files_only_hint_at_it(tmp_path):
    names = ("train_v2", "test_v2")
    write(tmp_path / "files", {f"{name}.jsonl": one(name) for name in names})
    write(tmp_path / "hub", {f"data/{name}-0-of-1.jsonl": one(name) for name in names})
    assert opened(tmp_path / "files")[:2] == (["train_v2"], ["test_v2"])
    assert "only the splits test_v2, train_v2" in refused(tmp_path / "hub")


def test_a_file_of_rows_for_another_loss_is_not_taken(tmp_path):
    write(tmp_path, {f"{name}.jsonl": one(name) for name in ("train_sft", "test_sft")})
    assert "only the splits test_sft, train_sft" in refused(tmp_path, pairs=True)
    assert opened(tmp_path, pairs=False)[:2] == (["train_sft"], ["test_sft"])


def test_links_that_go_round_are_followed_once(tmp_path):
    write(tmp_path, {"sub/train.jsonl": one("a")})
    (tmp_path / "sub" / "again").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "same").symlink_to(tmp_path / "sub", target_is_directory=True)
    assert opened(tmp_path)[0] == ["a"]


def test_a_text_beside_the_only_file_of_rows_is_not_rows(tmp_path):
    write(tmp_path, {"a.jsonl": one("a"), "about.txt": "what this is"})
    assert opened(tmp_path) == (["a"], None, ["not read: about.txt"])


def test_a_pattern_of_a_card_matches_data_files_only(tmp_path):
    card = "---\nconfigs:\n- {config_name: x, data_files: '*'}\n---\n"
    write(tmp_path, {"README.md": card, "a.png": "", "a.jsonl": one("a"), "config.json": "{}"})
    assert opened(tmp_path)[0] == ["a"]


def test_two_default_configurations_are_none(tmp_path):
    entry = "- {{config_name: {0}, default: true, data_files: {0}.jsonl}}\n"
    card = f"---\nconfigs:\n{entry.format('a')}{entry.format('b')}---\n"
    write(tmp_path, {"README.md": card, "a.jsonl": one("a"), "b.jsonl": one("b")})
    assert "several configurations (a, b)" in refused(tmp_path)


def test_a_card_may_give_one_file_to_two_splits(tmp_path):
    files = "[{split: train, path: a.jsonl}, {split: test, path: a.jsonl}]"
    card = f"---\nconfigs:\n- {{config_name: x, data_files: {files}}}\n---\n"
    write(tmp_path, {"README.md": card, "a.jsonl": one("a")})
    assert opened(tmp_path)[:2] == (["a"], ["a"])


def test_equal_files_of_the_hubs_cache_are_links_to_one(tmp_path):
    write(tmp_path, {"blobs/a": one("a"), "snapshots/r/README.md": ""})
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / "snapshots/r" / name).symlink_to(tmp_path / "blobs/a")
    assert opened(tmp_path, "/snapshots/r")[:2] == (["a"], ["a"])


def test_xz_files_may_be_padded(tmp_path):
    packed = lzma.compress(one("a").encode()) + b"\0" * 8 + lzma.compress(one("b").encode())
    write(tmp_path, {"a.jsonl.xz": packed})
    assert opened(tmp_path, "/a.jsonl.xz")[0] == ["a", "b"]


def test_labels_lie_beside_compressed_rows_too(tmp_path):
    rows = [{key: PIQA[key] for key in ("goal", "sol1", "sol2")}] * 2
    write(tmp_path, {"train.jsonl.xz": lzma.compress(lines(*rows).encode())})
    write(tmp_path, {"train-labels.lst": "0\n1\n"})
    assert [r["label"] for _, r in open_source(str(tmp_path)).train.rows] == [0, 1]


def test_tools_without_a_text_are_no_rows(tmp_path):
    write(tmp_path, {"a.json": '{"tools": [{"type": "function"}], "id": 1}'})
    rows = [columns for _, columns in open_source(f"{tmp_path}/a.json").train.rows]
    assert rows == [{"tools": [{"type": "function"}], "id": 1}]
