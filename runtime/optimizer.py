"""The optimizer: AdamW, and which parameters have which learning rate and weight decay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def make_optimizer(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    *,
    learning_rates: Mapping[str, float] | None = None,
) -> torch.optim.AdamW:
    """AdamW (betas 0.9, 0.999, eps 1e-8), fused; weight decay on matrices only.

    A group keeps its peak learning rate as `initial_lr`, as torch's own schedulers do; the loop
    sets `lr` from it at every step.

    Args:
        learning_rates: another peak for parameters whose names begin so: {"critic.": 1e-5}.
    """
    prefixes = tuple(learning_rates or ())
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        prefix = next((p for p in prefixes if name.startswith(p)), None)
        peak = learning_rate if prefix is None else (learning_rates or {})[prefix]
        matrix = parameter.ndim >= 2
        group = {"lr": peak, "initial_lr": peak, "weight_decay": weight_decay if matrix else 0.0}
        groups.setdefault((peak, matrix), group | {"params": []})["params"].append(parameter)
    return torch.optim.AdamW(list(groups.values()), fused=True)
