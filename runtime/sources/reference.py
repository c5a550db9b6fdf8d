"""Log-probs of the reference model, computed once before the first update; it is never resident.

At step 0 the policy is the reference, so the policy's own forward gives them. They are kept in the
run directory, keyed by everything they depend on, so that a run started again need not repeat them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from data.errors import InputError
from data.splits import Split
from losses.base import accumulation_dtype, masked_sum
from models.inference import forward_pass
from models.layout import choose_layout
from models.load import check_vocabulary, load_causal_lm
from runtime.config import TrainConfig
from runtime.files import by_umask, sync
from runtime.guards.outputs import say

COLUMN = "ref_seq_logps"


def with_reference(
    accelerator: Accelerator,
    policy: nn.Module,
    config: TrainConfig,
    ref_model: str | None,
    splits: Sequence[Split],
    path: Path,
) -> list[Split]:
    """The splits with the column `ref_seq_logps`: computed, or read from `path` where it is kept.

    Without `ref_model` the reference is the policy as it is now, so this comes before any update.
    Another reference is loaded, run once over the rows, and freed.
    """
    model, asked = accelerator.unwrap_model(policy).model, splits
    if ref_model is not None:
        model = load_causal_lm(ref_model, dtype=config.dtype, flag="--ref_model")
        model.to(accelerator.device)
        token_ids = {token for split in splits for token in split.token_ids}
        check_vocabulary(model, token_ids, f"--ref_model {ref_model}")
        layout, module, _ = choose_layout(model, config.layout, name=f"--ref_model {ref_model}")
        policy = accelerator.prepare_model(module, evaluation_mode=True)
        asked = [replace(split, layout=layout) for split in splits]

    key = cache_key(model, asked, COLUMN, config.mixed_precision, config.max_tokens)
    shapes = {str(i): len(s.rows) * len(s.rows[0].responses) for i, s in enumerate(asked)}
    kept = read_cache(path, key, shapes)
    if kept is None:
        kept = {
            str(i): reference_logps(accelerator, policy, split, config.max_tokens)
            for i, split in enumerate(asked)
        }
        for i, split in enumerate(asked):
            check_finite(kept[str(i)], split, f"--ref_model {ref_model or config.model}")
        if accelerator.is_main_process:
            write_cache(path, key, kept)
    return [split.with_columns({COLUMN: kept[str(i)]}) for i, split in enumerate(splits)]


def check_finite(logps: Tensor, data: Split, who: str) -> None:
    """Raise InputError naming the first row whose log-prob is NaN or infinite."""
    bad = (~logps.isfinite()).nonzero().flatten().tolist()
    if bad:
        row = data.rows[bad[0] // len(data.rows[0].responses)]
        raise InputError(f"{row.where}: {who} gives it a log-prob of {logps[bad[0]].item()}")


def reference_logps(
    accelerator: Accelerator, policy: nn.Module, data: Split, max_tokens: int
) -> Tensor:
    """(S,) log-probability of each response, summed over its tokens, on the CPU."""
    rank, ranks = accelerator.process_index, accelerator.num_processes
    device, k = accelerator.device, len(data.rows[0].responses)
    sums = torch.zeros((len(data.rows), k), dtype=accumulation_dtype(device), device=device)
    for members, batch, logps in forward_pass(
        policy, data, max_tokens=max_tokens, device=device, rank=rank, ranks=ranks
    ):
        if not batch.dummy:
            seq_logps = masked_sum(logps, batch.mask)
            sums[members] = seq_logps.to(sums.dtype).view(len(members), k)
    # every row was computed on one rank and is 0 on the others
    reduced: Tensor = accelerator.reduce(sums, "sum")
    return reduced.flatten().cpu()


def cache_key(model: nn.Module, splits: Sequence[Split], *settings: object) -> str:
    """A hash of weights, token ids (so of tokenizer, template and data), layout and settings."""
    digest = hashlib.sha256(repr(settings).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(raw.numpy().data)
    for split in splits:
        digest.update(split.layout.encode())
        for row in split.rows:
            digest.update(repr((row.prompt, row.responses)).encode())
    return digest.hexdigest()


def write_cache(path: Path, key: str, kept: dict[str, Tensor]) -> None:
    """Keep the tensors under `key`, with a checksum: whole, or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    # In one entry: safetensors writes several in a random order, and a file has the same bytes.
    save_file(kept, partial, metadata={"key": f"{key} {_checksum(kept)}"})
    by_umask(partial)
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)


def read_cache(path: Path, key: str, sizes: Mapping[str, int]) -> dict[str, Tensor] | None:
    """The tensors kept under `key`, of these numbers of elements; None if they must be computed.

    What is there under the right key and is not what was written is said.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found, _, checksum = (file.metadata() or {}).get("key", "").partition(" ")
            if found != key:
                return None
            kept = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        say(f"{path.name} cannot be read ({error}): computed again")
        return None
    whole = {name: tensor.numel() for name, tensor in kept.items()} == dict(sizes)
    if not whole or checksum != _checksum(kept):
        say(f"{path.name} is not what was written: computed again")
        return None
    return kept


def _checksum(kept: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(kept):
        digest.update(f"{name} {kept[name].dtype} {tuple(kept[name].shape)}".encode())
        digest.update(kept[name].contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
