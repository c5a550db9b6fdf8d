"""Why weights are never trained in bfloat16, and what is there in its place."""

import pytest
import torch
from runs import BASE, pocket_rows, run, write_rows
from safetensors.torch import load_file
from torch import nn

from runtime.optimizer import make_optimizer

STEPS, RATE = 20, 1e-6  # dpo's own learning rate


def displacement(dtype):
    """Mean move of 10,000 weights of usual size under AdamW and a constant gradient."""
    layer = nn.Linear(100, 100, bias=False)
    with torch.no_grad():
        layer.weight.normal_(0, 0.05, generator=torch.Generator().manual_seed(0))
    layer = layer.to(dtype)
    before = layer.weight.detach().double()
    optimizer = make_optimizer(layer, RATE, 0.0)
    for _ in range(STEPS):
        layer.weight.grad = torch.ones_like(layer.weight)
        optimizer.step()
    return (layer.weight.detach().double() - before).abs()


def test_field_08_bfloat16_weights_lose_the_updates():
    """AdamW moves each weight by the rate in each step, and half a unit in the last place of a
    bfloat16 weight of 0.05 is a hundred times that: all but the weights near 0 stay where they are.
    """
    exact, narrow = displacement(torch.float32), displacement(torch.bfloat16)
    assert exact.mean().item() == pytest.approx(STEPS * RATE, rel=1e-2)
    assert (exact > 0).all() and (narrow > 0).double().mean() < 0.01
    assert narrow.mean() < 0.05 * exact.mean()


def moved(tmp_path, precision):
    """Mean move of pocket's weights in a few steps of dpo at its own learning rate."""
    out = tmp_path / precision
    data = write_rows(tmp_path / "data", *pocket_rows(32, 4))
    flags = ["--data", data, "--output_dir", out, "--mixed_precision", precision]
    flags += ["--max_steps", 8, "--batch_size", 4, "--learning_rate", RATE]
    done = run("--loss", "dpo", *flags)
    assert done.code == 0, done.err
    weights = [load_file(folder / "model.safetensors") for folder in (BASE, out / "final")]
    moves = torch.cat([(weights[1][k] - weights[0][k]).abs().flatten() for k in weights[0]])
    return moves.double()


def test_field_08_mixed_precision_moves_the_weights_as_float32_does(tmp_path):
    exact, mixed = (moved(tmp_path, precision) for precision in ("no", "bf16"))
    assert mixed.mean().item() == pytest.approx(exact.mean().item(), rel=0.05)
    assert (mixed > 0).double().mean() > 0.99
    assert not torch.equal(mixed, exact)
