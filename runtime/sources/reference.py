"""Log-probs of the reference model, computed once before the first update; it is never resident.

At step 0 the policy is the reference, so the policy's own forward gives them. They are kept in the
run directory, keyed by everything they depend on, so that a run started again need not repeat them.

A forward rounds by what else is in its batch: in bfloat16 a response's log-prob moves by 0.1 nats.
So the pass takes training rows in the micro-batches of the steps that train them first, and there
policy and reference round alike: before the first update DPO's h is exactly 0, in any precision.
Rows that no step takes are left out.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from data.errors import InputError
from data.splits import Split, StepRows
from data.trees import TreeBatch
from losses.base import accumulation_dtype, masked_sum
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
    train: Split,
    steps: Sequence[Sequence[int]],
    heldout: Split,
    path: Path,
) -> tuple[Split, Split]:
    """Both splits with the column `ref_seq_logps`: computed, or read from `path` where it is kept.

    Without `ref_model` the reference is the policy as it is now, so this comes before any update.
    Another reference is loaded, run once over the rows, and freed.

    Args:
        steps: the training rows of optimizer steps; the column is NaN for those of no step.
    """
    model, layout = accelerator.unwrap_model(policy).model, train.layout
    if ref_model is not None:
        model = load_causal_lm(ref_model, dtype=config.dtype, flag="--ref_model")
        model.to(accelerator.device)
        check_vocabulary(
            model, train.table.token_ids | heldout.table.token_ids, f"--ref_model {ref_model}"
        )
        layout, module, _ = choose_layout(model, config.layout, name=f"--ref_model {ref_model}")
        policy = accelerator.prepare_model(module, evaluation_mode=True)

    asked = [replace(split, layout=layout) for split in (train, heldout)]
    settings = (COLUMN, config.mixed_precision, config.max_tokens, steps)
    key = cache_key(model, asked, *settings)
    shapes = {str(i): len(s.rows) * len(s.rows[0].responses) for i, s in enumerate(asked)}
    kept = read_cache(path, key, shapes)
    if kept is None:
        passes = (
            training_batches(accelerator, asked[0], steps, config.max_tokens),
            heldout_batches(accelerator, asked[1], config.max_tokens),
        )
        kept = {}
        who = f"--ref_model {ref_model or config.model}"
        for i, (split, batches) in enumerate(zip(asked, passes, strict=True)):
            kept[str(i)] = reference_logps(accelerator, policy, split, batches, who)
        if accelerator.is_main_process:
            write_cache(path, key, kept)
    return train.with_columns({COLUMN: kept["0"]}), heldout.with_columns({COLUMN: kept["1"]})


def training_batches(
    accelerator: Accelerator, split: Split, steps: Iterable[Sequence[int]], max_tokens: int
) -> Iterator[tuple[TreeBatch, list[bool]]]:
    """This rank's micro-batches of the steps that take a row for the first time, and which do."""
    ranks, rank = accelerator.num_processes, accelerator.process_index
    seen: set[int] = set()
    for rows in steps:
        new = set(rows) - seen
        if new:
            step = StepRows(split, rows, ranks, rank)
            for batch in step.batches(max_tokens, accelerator.device):
                yield batch, [i in new for i in batch.index.tolist()]
        seen |= new


def heldout_batches(
    accelerator: Accelerator, split: Split, max_tokens: int
) -> Iterator[tuple[TreeBatch, list[bool]]]:
    """This rank's batches as evaluation has them; all of their rows are new."""
    ranks, rank = accelerator.num_processes, accelerator.process_index
    for _, batch in split.batches(max_tokens, accelerator.device, rank=rank, ranks=ranks):
        yield batch, [True] * batch.num_examples


def check_finite(logps: Tensor, data: Split, who: str) -> None:
    """Raise InputError naming the first row whose log-prob is NaN or infinite."""
    bad = (~logps.isfinite()).nonzero().flatten().tolist()
    if bad:
        row = data.rows[bad[0] // len(data.rows[0].responses)]
        raise InputError(f"{row.where}: {who} gives it a log-prob of {logps[bad[0]].item()}")


@torch.no_grad()
def reference_logps(
    accelerator: Accelerator,
    policy: nn.Module,
    data: Split,
    batches: Iterable[tuple[TreeBatch, list[bool]]],
    who: str = "--ref_model",
) -> Tensor:
    """(S,) log-probability of each response, summed over its tokens, on the CPU.

    Args:
        batches: of this rank, each with whether its rows count; NaN for rows that never do.
        who: what to call the model in an error.

    Raises:
        InputError: a log-prob is not finite.
    """
    device, k = accelerator.device, len(data.rows[0].responses)
    dtype = accumulation_dtype(device)
    sums = torch.zeros((len(data.rows), k), dtype=dtype, device=device)
    times = torch.zeros(len(data.rows), dtype=dtype, device=device)
    for batch, new in batches:
        seq_logps = masked_sum(policy(batch), batch.mask).to(sums.dtype).view(-1, k)
        if not batch.dummy:
            count = torch.tensor(new, device=device)
            sums.index_add_(0, batch.index[count], seq_logps[count])
            times.index_add_(0, batch.index[count], times.new_ones(sum(new)))
    # A row is on one rank and 0 on the others; or there twice, where a step has a row twice.
    sums, times = (accelerator.reduce(x, "sum") for x in (sums, times))
    check_finite(sums.flatten(), data, who)
    means: Tensor = sums / times[:, None]
    return means.flatten().cpu()


def cache_key(model: nn.Module, splits: Sequence[Split], *settings: object) -> str:
    """A hash of weights, token ids (so of tokenizer, template and data), layout and settings."""
    digest = hashlib.sha256(repr(settings).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(raw.numpy().data)
    for split in splits:
        digest.update(f"{split.layout} {split.table.digest}".encode())
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
