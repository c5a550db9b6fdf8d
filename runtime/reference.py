"""Log-probs of the reference model, computed once before the first update; it is never resident.

At step 0 the policy is the reference, so the policy's own forward gives them. They are kept in the
run directory, keyed by everything they depend on, so that a run started again need not repeat them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from data.batches import inference_batches
from losses.base import accumulation_dtype, masked_sum
from runtime.config import TrainConfig
from runtime.inputs import Rows
from runtime.layout import choose_layout
from runtime.models import check_vocabulary, load_causal_lm


def with_reference(
    accelerator: Accelerator,
    policy: nn.Module,
    config: TrainConfig,
    ref_model: str | None,
    splits: Sequence[Rows],
    path: Path,
) -> list[Rows]:
    """The splits with the reference's log-probs: computed, or read from `path` where they are kept.

    Without `ref_model` the reference is the policy as it is now, so this comes before any update.
    Another reference is loaded, run once over the rows, and freed.
    """
    model, layouts = accelerator.unwrap_model(policy).model, [rows.layout for rows in splits]
    if ref_model is not None:
        model = load_causal_lm(ref_model, dtype=config.dtype, flag="--ref_model")
        model.to(accelerator.device)
        used = {token for rows in splits for token in rows.tokens}
        check_vocabulary(model, used, f"--ref_model {ref_model}")
        layout, module, _ = choose_layout(model, config.layout)
        policy = accelerator.prepare_model(module, evaluation_mode=True)
        splits = [replace(rows, layout=layout) for rows in splits]

    key = cache_key(model, splits, config.mixed_precision, config.max_tokens)
    kept = read_cache(path, key)
    if kept is None:
        kept = {
            str(i): reference_logps(accelerator, policy, rows, config.max_tokens)
            for i, rows in enumerate(splits)
        }
        if accelerator.is_main_process:
            save_file(kept, path, metadata={"key": key})
    return [
        replace(rows, layout=layout, ref_logps=kept[str(i)])
        for i, (rows, layout) in enumerate(zip(splits, layouts, strict=True))
    ]


@torch.no_grad()
def reference_logps(
    accelerator: Accelerator, policy: nn.Module, data: Rows, max_tokens: int
) -> Tensor:
    """(rows, responses) log-probability of each response, summed over its tokens, on the CPU."""
    device, shape = accelerator.device, (len(data.rows), len(data.rows[0].responses))
    sums = torch.zeros(shape, dtype=accumulation_dtype(device), device=device)
    plan = inference_batches(data.lengths, accelerator.num_processes, max_tokens)
    for members in plan[accelerator.process_index]:
        batch = data.batch(members, device)
        seq_logps = masked_sum(policy(batch), batch.mask)
        if not batch.dummy:
            sums[members] = seq_logps.to(sums.dtype).view(len(members), -1)
    # every row was computed on one rank and is 0 on the others
    reduced: Tensor = accelerator.reduce(sums, "sum")
    return reduced.cpu()


def cache_key(model: nn.Module, splits: Sequence[Rows], *settings: object) -> str:
    """A hash of weights, token ids (so of tokenizer, template and data), layout and settings."""
    digest = hashlib.sha256(repr(settings).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(raw.numpy().data)
    for rows in splits:
        digest.update(rows.layout.encode())
        for row in rows.rows:
            digest.update(repr((row.prompt, row.responses)).encode())
    return digest.hexdigest()


def read_cache(path: Path, key: str) -> dict[str, Tensor] | None:
    """The tensors kept under `key`, or None."""
    try:
        with safe_open(path, framework="pt") as kept:
            if (kept.metadata() or {}).get("key") == key:
                return {name: kept.get_tensor(name) for name in kept.keys()}
    except (OSError, SafetensorError):
        pass
    return None
