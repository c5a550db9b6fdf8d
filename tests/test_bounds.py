"""Input without an end: pipes and devices in place of files, files that unpack to too much."""

import bz2
import gzip
import lzma
import os
import shutil

import pytest
import small_tokenizers as small
from runs import QUICK, pocket_rows, run, write_rows

import data.archives as archives
from data import errors
from data.archives import unpack
from data.cards import read_configs
from data.errors import InputError
from data.pocket import BASE_DIR
from models.load import load_tokenizer
from runtime.directory import RunDirectory

pytestmark = pytest.mark.timeout(120)
NO_FILE = "not a file but a pipe or a device"


def zstd(content):
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


PACKED = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


@pytest.mark.parametrize("suffix", PACKED)
def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(archives, "PART", 1 << 16)
    monkeypatch.setattr(archives, "PLAUSIBLE", 1 << 20)
    pack = PACKED[suffix]
    bomb, text = tmp_path / f"bomb.jsonl{suffix}", tmp_path / f"text.jsonl{suffix}"
    bomb.write_bytes(pack(b"\0" * (64 << 20)))
    with pytest.raises(InputError, match=f"{bomb}: over 300 times its size"):
        unpack(bomb)
    lines = b"".join(b'{"prompt": "%d", "completion": "a"}\n' % i for i in range(100_000))
    text.write_bytes(pack(lines) + pack(lines) if suffix != ".zst" else pack(lines * 2))
    assert unpack(text) == lines * 2  # two members, and over PLAUSIBLE


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("data"), *pocket_rows(24, 8))


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/urandom", "pipe", "link.jsonl"])
@pytest.mark.parametrize(
    "flag", ["--data", "--eval_data", "--chat_template", "--model", "--config"]
)
def test_what_is_no_file_is_refused_at_every_flag(data, tmp_path, flag, path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link.jsonl").symlink_to("/dev/zero")
    done = run("--loss", "dpo", "--data", data, flag, path, "--dry_run", cwd=tmp_path)
    assert done.code in (errors.NO_INPUT, errors.BAD_DATA, errors.USAGE) and done.line


@pytest.mark.parametrize("name", ["train.jsonl", "README.md", "dataset_infos.json", "x.parquet"])
def test_a_pipe_in_a_folder_of_data(tmp_path, name):
    folder = tmp_path / "data"
    folder.mkdir()
    write_rows(folder, *pocket_rows(8, 2))
    for file in folder.glob(name):
        file.unlink()
    os.mkfifo(folder / name)
    done = run("--loss", "dpo", "--data", folder, "--dry_run", cwd=tmp_path)
    assert done.code == 0 or NO_FILE in done.line


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "x"])
def test_a_pipe_in_a_model(tmp_path, name):
    shutil.copytree(BASE_DIR, tmp_path / "m")
    (tmp_path / "m" / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "m" / name)
    with pytest.raises(InputError, match=f"--model .*/m: {name}: {NO_FILE}"):
        load_tokenizer(str(tmp_path / "m"))


@pytest.mark.parametrize("name", ["status.json", "run.json", "metrics.jsonl", "final", "x"])
def test_a_pipe_in_the_run_directory(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=f"{name}: {NO_FILE}") as refused:
        RunDirectory(tmp_path, overwrite=True)
    assert refused.value.exit_code == errors.CANNOT_CREATE


def test_a_card_that_recurses_is_no_card(tmp_path):
    for front in ("[" * 50_000, "a: " + "9" * 5000, "a: 2001-99-99"):
        (tmp_path / "README.md").write_text(f"---\n{front}\n---\n", "utf-8")
        assert read_configs(tmp_path)[:2] == ([], None)


def test_a_tokenizer_that_drops_merges_is_refused(tmp_path):
    """Every start would train on other tokens."""
    tokenizer = small.chatml()
    tokenizer.save_pretrained(tmp_path)
    shutil.copy(BASE_DIR / "config.json", tmp_path)
    load_tokenizer(str(tmp_path))
    file = tmp_path / "tokenizer.json"
    text = file.read_text("utf-8")
    assert '"dropout": null' in text
    for share in (0.5, 0.02):
        file.write_text(text.replace('"dropout": null', f'"dropout": {share}'), "utf-8")
        with pytest.raises(InputError, match="it gives other tokens each time"):
            load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("flag", ["--data", "--model", "--output_dir", "--chat_template"])
def test_the_home_of_nobody(data, tmp_path, flag):
    flags = ["--loss", "dpo", "--data", data, *QUICK, flag, "~nobody-of-that-name/x"]
    done = run(*flags, "--dry_run", cwd=tmp_path)
    assert done.code in (0, errors.NO_INPUT, errors.USAGE, errors.CANNOT_CREATE)
    assert done.code == 0 or done.line
