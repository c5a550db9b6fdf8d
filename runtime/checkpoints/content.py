"""What a checkpoint holds: the weights, the optimizer's state, and `TrainState`.

Only the first rank writes and reads checkpoints: weights and optimizer are the same on all ranks,
and it has the rollouts of all. So a run can go on with another number of processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list
from torch import Tensor, nn

from data.row_table import Row
from data.splits import Split
from rollout.state import Experience, RolloutState
from runtime.checkpoints.store import Checkpoint, Damaged
from runtime.state import TrainState

Optimizer = torch.optim.Optimizer
Tensors = dict[str, Tensor]


def capture(
    module: nn.Module, optimizer: Optimizer, state: TrainState, scaler: Any = None
) -> Checkpoint:
    """A run as it is now; the tensors are its own, not copies.

    Args:
        module: what is trained, not wrapped for DDP.
        scaler: fp16's GradScaler, where there is one.
    """
    rollout, columns = _rollout_out(state.rollout)
    tensors = {"model": weights(module), "optimizer": _moments(module, optimizer)}
    if columns:
        tensors["rollout"] = columns
    about = asdict(replace(state, rollout=None)) | {"rollout": rollout}
    about["scaler"] = scaler.state_dict() if scaler is not None else None
    return Checkpoint(state.step, about, tensors)


def to_cpu(checkpoint: Checkpoint) -> Checkpoint:
    """The same with copies of all tensors, which training does not change any more."""
    tensors = {
        stem: {name: x.detach().to("cpu", copy=True) for name, x in part.items()}
        for stem, part in checkpoint.tensors.items()
    }
    return replace(checkpoint, tensors=tensors)


def restore(
    checkpoint: Checkpoint | None,
    module: nn.Module,
    optimizer: Optimizer,
    state: TrainState,
    accelerator: Accelerator,
) -> None:
    """Put a run into the state of a checkpoint, which the first rank has and the others do not.

    Raises:
        Damaged: the checkpoint is of another model.
    """
    about = [None if checkpoint is None else dict(checkpoint.state)]
    if checkpoint is not None:
        _check_names(checkpoint, module)
    optimizer_names: list[Any] = [None]
    if checkpoint is not None:
        optimizer_names = [sorted(checkpoint.tensors["optimizer"])]
    if accelerator.num_processes > 1:
        broadcast_object_list(about)
        broadcast_object_list(optimizer_names)
    given = about[0]
    assert given is not None

    def everywhere(stem: str, name: str, like: Tensor) -> Tensor:
        found = torch.empty_like(like)
        if checkpoint is not None:
            found.copy_(checkpoint.tensors[stem][name])
        return broadcast(found) if accelerator.num_processes > 1 else found

    with torch.no_grad():
        for name, tensor in weights(module).items():
            tensor.copy_(everywhere("model", name, tensor))
    parameters = dict(module.named_parameters())
    for full_name in optimizer_names[0]:
        key, name = full_name.split("/", 1)
        parameter = parameters[name]
        like = torch.empty((), device=parameter.device) if key == "step" else parameter.detach()
        optimizer.state[parameter][key] = everywhere("optimizer", full_name, like)

    scaler = given.pop("scaler")
    if scaler and accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(scaler)
    rollout = [None if checkpoint is None else checkpoint.tensors.get("rollout")]
    if accelerator.num_processes > 1 and given["rollout"] is not None:
        broadcast_object_list(rollout)
    given["rollout"] = _rollout_in(
        given["rollout"], rollout[0] or {}, accelerator.process_index, accelerator.num_processes
    )
    given["recent"] = [(loss, norm) for loss, norm in given["recent"]]
    for field in fields(state):
        if field.name != "rollout":
            setattr(state, field.name, given[field.name])
    if state.rollout is not None:  # the feed holds this very object
        for name, value in vars(given["rollout"]).items():
            setattr(state.rollout, name, value)


def weights(module: nn.Module) -> Tensors:
    """Parameters and the buffers that belong to a model, tied ones once."""
    kept = module.state_dict().keys()
    buffers = {name: x for name, x in module.named_buffers() if name in kept}
    return {name: p.detach() for name, p in module.named_parameters()} | buffers


def _moments(module: nn.Module, optimizer: Optimizer) -> Tensors:
    """The optimizer's state by the parameters' names: `exp_avg/model.embed.weight`."""
    return {
        f"{key}/{name}": value
        for name, parameter in module.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _check_names(checkpoint: Checkpoint, module: nn.Module) -> None:
    if "optimizer" not in checkpoint.tensors or "model" not in checkpoint.tensors:
        raise Damaged("it holds no model or no optimizer")
    saved = {name: x.shape for name, x in checkpoint.tensors["model"].items()}
    here = {name: x.shape for name, x in weights(module).items()}
    if saved != here:
        name = next(name for name in saved | here if saved.get(name) != here.get(name))
        raise Damaged(f"its weights are another model's: {name} differs")


def _rollout_out(rollout: RolloutState | None) -> tuple[dict[str, Any] | None, Tensors]:
    """A rollout's state as JSON and as tensors."""
    if rollout is None:
        return None, {}
    about = asdict(replace(rollout, experience=None))
    if rollout.experience is None:
        return about, {}
    split = rollout.experience.everyone or rollout.experience.split
    about["experience"] = {
        "metrics": rollout.experience.metrics,
        "rows": [asdict(row) for row in split.rows],
        "layout": split.layout,
        "packing": dict(split.packing),
    }
    return about, {name: column.contiguous() for name, column in split.columns.items()}


def _rollout_in(
    about: Mapping[str, Any] | None, columns: Mapping[str, Tensor], rank: int, ranks: int
) -> RolloutState | None:
    """`rank`'s part of a rollout's state, for any number of ranks."""
    if about is None or about["experience"] is None:
        return None if about is None else RolloutState(**about)
    given = about["experience"]
    rows = [Row(**row) for row in given["rows"]]
    whole = Split(rows, given["layout"], given["packing"], columns)
    mine = replace(whole, rows=rows[rank::ranks])
    mine = mine.with_columns({name: column[rank::ranks] for name, column in columns.items()})
    experience = Experience(mine, given["metrics"], whole if ranks > 1 else None)
    return RolloutState(**{**about, "experience": experience})
