"""Tokens kept between runs: the same as those made anew, never stale, and never in the way."""

import json
import os
import threading
import time
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from runs import BASE, QUICK, pocket_rows, run, timeless, write_rows

from data import token_cache
from data.errors import InputError
from data.options import ReadOptions
from data.prepared import DataSettings, prepare
from data.row_table import RowTable
from data.token_cache import folder, key_of, prepare_cached, read, remove_unused
from models.load import load_tokenizer

TOKENIZER = load_tokenizer(str(BASE))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(token_cache, "LEAST_BYTES", 1)
    return tmp_path / "cache" / "alignment-losses-tokens"


@pytest.fixture
def data(tmp_path):
    return write_rows(tmp_path / "data", *pocket_rows(30, 6))


def entries(cache):
    return sorted(path.name for path in cache.iterdir() if path.is_dir())


def never(*arguments):
    raise AssertionError("made again")


def damage(file, how):
    """In a file of its own: the one before is still mapped, and to cut it would end the process."""
    content = bytearray(file.read_bytes())
    file.unlink()
    if how == "cut":
        content = content[:50]
    else:
        content[0 if file.suffix == ".json" else -100] ^= 1
    if how != "removed":
        file.write_bytes(content)


def test_what_is_kept_is_what_is_made(cache, data, monkeypatch):
    settings = DataSettings(str(data), piqa=True)
    fresh = prepare(settings, TOKENIZER)
    first = prepare_cached(settings, TOKENIZER)
    monkeypatch.setattr(token_cache, "prepare", never)
    second = prepare_cached(settings, TOKENIZER)
    for found in (first, second):
        assert found.train == fresh.train and found.train.digest == fresh.train.digest
        assert found.heldout == fresh.heldout and found.train.token_ids == fresh.train.token_ids
        assert found.piqa == fresh.piqa and len(found.piqa) == 6
        assert found.end_tokens == fresh.end_tokens == {TOKENIZER.eos_token_id}
        assert list(found.lines)[:-1] == fresh.lines
    (entry,) = entries(cache)
    assert first.lines[-1] == f"tokens: kept for the next run in {cache / entry}"
    assert second.lines[-1] == f"tokens: kept by an earlier run in {cache / entry}"


OTHER: dict[str, Any] = {
    "data": "{data}/train.jsonl",
    "eval_data": "{data}/valid.jsonl",
    "responses": 1,
    "reading": ReadOptions(columns={"prompt": ("prompt", "prompt")}),
    "seed": 1,
    "max_length": 16,
    "overlong": "drop",
    "piqa": True,
}


@pytest.mark.parametrize("name", [field.name for field in fields(DataSettings)])
def test_every_setting_has_tokens_of_its_own(cache, data, name):
    settings = DataSettings(str(data))
    value = OTHER[name].format(data=data) if name.endswith("data") else OTHER[name]
    other = replace(settings, **{name: value})
    prepare_cached(settings, TOKENIZER)
    found = prepare_cached(other, TOKENIZER)
    assert len(entries(cache)) == 2
    fresh = prepare(other, TOKENIZER)
    assert found.train == fresh.train and list(found.lines)[:-1] == fresh.lines


def test_the_order_of_a_set_is_no_setting():
    names = [f"column{n}" for n in range(50)]
    keys = {
        key_of(DataSettings("a", reading=ReadOptions(ignore=frozenset(some))), TOKENIZER, [])
        for some in (names, names[::-1])
    }
    assert len(keys) == 1


def other_template(tokenizer):
    tokenizer.chat_template = "{{ messages }}"


def other_end(tokenizer):
    tokenizer.eos_token = tokenizer.unk_token or "a"


def other_word(tokenizer):
    tokenizer.add_tokens(["Question"])


@pytest.mark.parametrize("change", [other_template, other_end, other_word])
def test_every_tokenizer_has_tokens_of_its_own(cache, data, change):
    settings, tokenizer = DataSettings(str(data)), load_tokenizer(str(BASE))
    prepare_cached(settings, TOKENIZER)
    change(tokenizer)
    found = prepare_cached(settings, tokenizer)
    assert len(entries(cache)) == 2 and found.train == prepare(settings, tokenizer).train


def test_a_changed_file_is_read_again(cache, data):
    settings = DataSettings(str(data))
    before = prepare_cached(settings, TOKENIZER)
    train = data / "train.jsonl"
    times = os.stat(train)
    train.write_text(train.read_text("utf-8").replace("Question", "Questiom", 1), "utf-8")
    os.utime(train, ns=(times.st_atime_ns, times.st_mtime_ns))  # as old and as large as before
    found = prepare_cached(settings, TOKENIZER)
    assert found.train != before.train and found.train == prepare(settings, TOKENIZER).train


def test_labels_beside_a_file_count_as_data(cache, tmp_path):
    rows = [{"goal": f"g {n}", "sol1": f"one {n}", "sol2": f"two {n}"} for n in range(30)]
    write_rows(tmp_path, rows, rows[:5])
    for name, count in (("train", 30), ("valid", 5)):
        (tmp_path / f"{name}-labels.lst").write_text("0\n" * count, "utf-8")
    settings = DataSettings(str(tmp_path))
    before = prepare_cached(settings, TOKENIZER)
    (tmp_path / "train-labels.lst").write_text("1\n" + "0\n" * 29, "utf-8")
    found = prepare_cached(settings, TOKENIZER)
    assert found.train[0].responses == before.train[0].responses[::-1]


def test_another_version_of_the_code_or_of_a_library_makes_them_again(cache, data, monkeypatch):
    settings = DataSettings(str(data))
    keys = [key_of(settings, TOKENIZER, [])]
    versions, sums = token_cache.version, token_cache.sha256
    for name in token_cache.LIBRARIES:
        with monkeypatch.context() as patch:
            later = {name: "1000.0"}
            patch.setattr(token_cache, "version", lambda n, new=later: new.get(n) or versions(n))
            keys.append(key_of(settings, TOKENIZER, []))
    changed = {"encode.py": "other"}
    monkeypatch.setattr(token_cache, "sha256", lambda file: changed.get(file.name) or sums(file))
    keys.append(key_of(settings, TOKENIZER, []))
    assert len(set(keys)) == len(token_cache.LIBRARIES) + 2


@pytest.mark.parametrize("name", ["train.arrow", "heldout.arrow", "about.json"])
@pytest.mark.parametrize("how", ["damaged", "cut", "removed"])
def test_an_entry_that_is_not_whole_is_made_again(cache, data, name, how):
    settings = DataSettings(str(data))
    fresh = prepare_cached(settings, TOKENIZER)
    (entry,) = entries(cache)
    damage(cache / entry / name, how)
    found = prepare_cached(settings, TOKENIZER)
    assert found.train == fresh.train and found.heldout == fresh.heldout
    said = "kept for the next run" if how == "removed" else "made again"
    assert found.lines[-1].startswith(f"tokens: {said}"), found.lines[-1]
    assert read(cache / entry).train == fresh.train


def test_a_token_that_changed_in_a_file_is_not_trained_on(cache, data):
    """Arrow reads the file as before: the checksum alone tells."""
    settings = DataSettings(str(data))
    fresh = prepare_cached(settings, TOKENIZER)
    (entry,) = entries(cache)
    file = cache / entry / "train.arrow"
    content = bytearray(file.read_bytes())
    at = content.find(np.array(fresh.train[0].prompt, dtype=np.int32).tobytes())
    assert at > 0
    content[at] ^= 1
    file.unlink()
    file.write_bytes(content)
    changed = RowTable.read(file)[0].prompt
    assert changed != fresh.train[0].prompt and changed[1:] == fresh.train[0].prompt[1:]
    found = prepare_cached(settings, TOKENIZER)
    assert found.train == fresh.train and "made again" in found.lines[-1]


def test_what_a_killed_run_left_is_replaced(cache, data):
    settings = DataSettings(str(data))
    key = key_of(settings, TOKENIZER, token_cache.data_files(settings))
    left = cache / f"{key}.partial"
    left.mkdir(parents=True)
    (left / "train.arrow").write_bytes(b"half")
    prepare_cached(settings, TOKENIZER)
    assert entries(cache) == [key]


def test_a_cache_that_cannot_be_written_ends_no_run(data, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder", "utf-8")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "file"))
    found = prepare_cached(DataSettings(str(data)), TOKENIZER)
    assert found.train == prepare(DataSettings(str(data)), TOKENIZER).train
    assert found.lines[-1].startswith("tokens: not kept for the next run: ")


def test_a_full_disk_ends_no_run(cache, data, monkeypatch):
    def full(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data.row_table.RowTable.write", full)
    found = prepare_cached(DataSettings(str(data)), TOKENIZER)
    assert len(found.train) == 30 and "No space left" in found.lines[-1]
    assert not [name for name in entries(cache) if not name.endswith(".partial")]


@pytest.mark.parametrize("what", ["small", "pocket", "both"])
def test_small_data_and_data_that_is_no_file_are_not_kept(cache, data, what, monkeypatch):
    if what == "small":
        monkeypatch.setattr(token_cache, "LEAST_BYTES", 4 << 20)
    name = {"small": str(data), "pocket": "pocket", "both": f"{data},pocket"}[what]
    found = prepare_cached(DataSettings(name), TOKENIZER)
    assert not cache.exists() and not any(line.startswith("tokens:") for line in found.lines)


def test_a_bad_row_is_the_same_error_and_nothing_is_kept(cache, data):
    with open(data / "train.jsonl", "a", encoding="utf-8") as file:
        file.write("{}\n")
    settings = DataSettings(str(data))
    errors = []
    for function in (prepare, prepare_cached, prepare_cached):
        with pytest.raises(InputError) as caught:
            function(settings, TOKENIZER)
        errors.append((str(caught.value), caught.value.exit_code))
    assert len(set(errors)) == 1 and "train.jsonl:31" in errors[0][0] and entries(cache) == []


def test_of_several_at_once_one_makes_them(cache, data, monkeypatch):
    made, found, actual = [], [], token_cache.prepare

    def slowly(*arguments):
        made.append(arguments)
        time.sleep(0.3)
        return actual(*arguments)

    monkeypatch.setattr(token_cache, "prepare", slowly)
    work = lambda: found.append(prepare_cached(DataSettings(str(data)), TOKENIZER))  # noqa: E731
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and len(found) == 4
    assert all(one.train == found[0].train for one in found)


def test_entries_that_nothing_uses_are_removed(cache, data):
    prepare_cached(DataSettings(str(data)), TOKENIZER)
    prepare_cached(DataSettings(str(data), seed=1), TOKENIZER)
    first, second = (cache / name for name in entries(cache))
    old = time.time() - token_cache.KEPT_DAYS * 86_400 - 60
    os.utime(first / "about.json", (old, old))
    os.utime(second / "about.json", (old + 120, old + 120))
    (cache / "f.partial").mkdir()
    os.utime(cache / "f.partial", (old, old))
    remove_unused(cache)
    assert entries(cache) == [second.name]
    read(second)
    assert time.time() - (second / "about.json").stat().st_mtime < 60  # used now


def small_is_kept():
    token_cache.LEAST_BYTES = 1


@pytest.mark.parametrize("loss", ["dpo", "sft", "reward"])
def test_runs_from_kept_tokens_are_the_same_runs(loss, data, tmp_path):
    outs = []
    for name, before in (("none", None), ("made", small_is_kept), ("kept", small_is_kept)):
        flags = ("--loss", loss, "--data", data, "--output_dir", tmp_path / name, *QUICK)
        done = run(*flags, before=before)
        assert done.code == 0, done.err
        outs.append((timeless(tmp_path / name), done.out))
    assert outs[0][0] == outs[1][0] == outs[2][0]
    assert ["tokens: kept by" in out for _, out in outs] == [False, False, True]
    identities = [
        json.loads((tmp_path / name / "config.json").read_text("utf-8"))["identity"]
        for name in ("none", "made", "kept")
    ]
    assert identities[0] == identities[1] == identities[2]


def test_the_folder_is_where_the_data_sets_are(monkeypatch, tmp_path):
    monkeypatch.delenv("HF_DATASETS_CACHE")
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    assert folder() == tmp_path / "datasets" / "alignment-losses-tokens"


def test_a_run_that_ends_with_an_error_lets_the_next_one_go_on(cache, data):
    """Whoever keeps the error, and so the frames that it came through, keeps no lock."""
    with open(data / "train.jsonl", "a", encoding="utf-8") as file:
        file.write("{}\n")
    settings = DataSettings(str(data))
    kept: list[InputError] = []

    def fail():
        try:
            prepare_cached(settings, TOKENIZER)
        except InputError as error:
            kept.append(error)

    fail()
    second = threading.Thread(target=fail, daemon=True)
    second.start()
    second.join(timeout=20)
    assert len(kept) == 2
