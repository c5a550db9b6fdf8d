"""Loading a model leaves nothing tied to the files that it came from."""

import shutil

import torch

from data.pocket import BASE_DIR
from runtime.models import load_causal_lm


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
