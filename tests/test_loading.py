"""A loaded model is not tied to the files that it came from, and a damaged file is named."""

import shutil

import pytest
import torch

from benchmarks.loading import resolve
from data.errors import BAD_DATA, InputError
from data.pocket import BASE_DIR
from models.load import load_causal_lm


def test_a_model_file_written_again_takes_no_trained_weight_back(tmp_path):
    """Weights that a run maps from the file go back to the file's when it is cut and rewritten."""
    directory = tmp_path / "base"
    shutil.copytree(BASE_DIR, directory)
    model = load_causal_lm(str(directory), dtype="float32")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    trained = [parameter.clone() for parameter in model.parameters()]

    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes())  # as cp and many a training script overwrite

    for parameter, before in zip(model.parameters(), trained, strict=True):
        assert torch.equal(parameter, before)


@pytest.mark.parametrize("file, text, reason", [
    ("config.json", "{", "(Expecting property name enclosed in double quotes: line 1 column 2 "),
    ("config.json", "[1]", "(a list, not an object)"),
    ("config.json", '{"architectures": [1]}', "architectures is [1], no list of names"),
    ("status.json", "{", "(Expecting property name enclosed in double quotes: line 1 column 2 "),
    ("adapter_config.json", "[1]", "(a list, not an object)"),
])  # fmt: skip
def test_a_damaged_file_is_named(tmp_path, file, text, reason):
    (tmp_path / file).write_text(text)
    with pytest.raises(InputError) as caught:
        resolve(str(tmp_path))
    line = str(caught.value)
    assert caught.value.exit_code == BAD_DATA and line.startswith(f"{tmp_path / file}: ")
    assert reason in line and line.endswith("; make or get this directory again")
