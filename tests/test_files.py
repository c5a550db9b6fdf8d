"""Files are whole or not there, and what cannot be written is found out before the work."""

import errno
import json
import os

import pytest

from runtime.files import check_writable, read_json, write_json, write_whole


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_text_is_written_as_utf_8_and_nothing_else_is_left(tmp_path, ascii_locale):
    path = tmp_path / "a.txt"
    path.write_text("old", "utf-8")
    write_whole(path, "é — 1\n")
    assert path.read_bytes() == "é — 1\n".encode() and names(tmp_path) == ["a.txt"]


def test_a_writer_that_is_stopped_leaves_the_old_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("old", "utf-8")

    def stop(*_):
        assert names(tmp_path) == ["a.txt", "a.txt.partial"]  # beside it, so renaming is enough
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, "new")
    assert path.read_text("utf-8") == "old"
    assert (tmp_path / "a.txt.partial").read_text("utf-8") == "new"


def test_a_place_that_can_be_written_to_is_left_as_it_was(tmp_path):
    path = tmp_path / "a" / "b" / "c.json"
    check_writable(path)
    assert names(path.parent) == []
    path.write_text("kept", "utf-8")
    check_writable(path)
    assert names(path.parent) == ["c.json"] and path.read_text("utf-8") == "kept"


def test_another_process_may_check_the_same_place(tmp_path, monkeypatch):
    """Its file is the same one, and gone by the time that this one would delete it."""
    path = tmp_path / "c.json"
    touch = type(path).touch

    def quicker(self, *arguments, **options):
        touch(self, *arguments, **options)
        self.unlink()

    monkeypatch.setattr(type(path), "touch", quicker)
    check_writable(path)


def test_a_directory_is_no_file_to_write(tmp_path):
    with pytest.raises(IsADirectoryError) as caught:
        check_writable(tmp_path)
    assert caught.value.errno == errno.EISDIR and caught.value.filename == str(tmp_path)
    assert caught.value.strerror == os.strerror(errno.EISDIR)
    assert names(tmp_path) == []


def test_a_place_below_a_file_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(OSError):
        check_writable(tmp_path / "file" / "c.json")


def test_json_is_written_a_field_a_line_and_read_back(tmp_path, ascii_locale):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1, "b": [True]})
    assert path.read_text("utf-8") == '{\n  "a": 1,\n  "b": [\n    true\n  ]\n}\n'
    assert read_json(path) == {"a": 1, "b": [True]}
    path.write_text(json.dumps({"ü": "é"}, ensure_ascii=False), "utf-8")
    assert read_json(path) == {"ü": "é"}


def test_what_cannot_be_read_is_empty(tmp_path):
    path = tmp_path / "a.json"
    assert read_json(path) == {}
    for content in (b"{", b"", b'{"a": "\xff"}'):
        path.write_bytes(content)
        assert read_json(path) == {}
    assert read_json(tmp_path) == {}
