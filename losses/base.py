"""What every loss file shares: the record it registers, what a step returns, and masked reductions.

Shapes: B pairs or rows, S sequences (two a pair: chosen, rejected, chosen, ...), T response tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:  # losses/ runs by itself, without the rest of the project
    from data.trees import TreeBatch

Metric = tuple[Tensor, Tensor]  # a detached (sum, count): adds up over micro-batches and ranks
Need = Literal["reference", "rollouts", "critic"]


@dataclass(frozen=True)
class LossOutput:
    """A *sum* for each unit, with its graph; the loop divides it by that unit's global count.

    The quotients together are the loss; `metrics` are what else is worth a curve.
    """

    totals: dict[str, Tensor]
    metrics: dict[str, Metric]


class ActorCriticOutput(NamedTuple):
    """Output of the actor-critic forward."""

    logps: Tensor  # (S, T)
    values: Tensor  # (S, T) of the state before each token
    last_values: Tensor  # (S,) of the state after the last; 0 unless its token was computed
    entropies: Tensor  # (S, T); 0 unless asked for


@dataclass(frozen=True)
class Loss:
    """One method, as the loop sees it. A new method is a new file with one of these at its end."""

    name: str
    config: type  # its flags: a frozen dataclass with a sentence under every field
    step: Callable[[Any, TreeBatch, Any], LossOutput]
    units: Callable[[TreeBatch, Any], dict[str, int]]  # what `totals` are sums over, and how many
    responses_per_row: Literal[1, 2]  # that it trains on: chosen, or chosen and rejected
    learning_rate: float  # default for `--learning_rate`, with its source beside it
    # The model that it trains, in PEFT's names. It decides the input of `step`: (S, T) log-probs of
    # a causal LM or (S,) scores of a sequence classifier; with a critic, an ActorCriticOutput.
    task: Literal["causal_lm", "seq_cls"] = "causal_lm"
    # Columns of a batch that `step` reads, beside the tokens' own: (S,) or (S, T) tensors.
    reads: tuple[str, ...] = ()
    # What has to stand beside the policy, by the flags: a reference, sampled responses, a critic.
    needs: Callable[[Any], frozenset[Need]] = field(default=lambda config: frozenset())
    # What its batches hold beyond response log-probs: keyword arguments of `pack`.
    packing: Callable[[Any], dict[str, bool]] = field(default=lambda config: {})
    # Quantities over the whole optimizer step, known before its first backward: called with the
    # policy, a micro-batch and the flags, without gradients. The mean of each over micro-batches
    # and ranks becomes a float64 column of that name, the same number for every sequence.
    before_step: Callable[[Any, TreeBatch, Any], dict[str, Metric]] | None = None
    # What held-out metrics must be before the first update, when the policy is its own reference.
    expected_initial_metrics: Callable[[Any], dict[str, float]] = field(default=lambda config: {})

    def check_columns(self, batch: TreeBatch) -> None:
        """Raise ValueError unless the batch has every column that `step` reads."""
        for name in self.reads:
            if name not in batch.columns:
                there = ", ".join(batch.columns) or "none"
                raise ValueError(f"loss {self.name} reads the column {name}; the batch has {there}")


def pairs(batch: TreeBatch, config: object) -> dict[str, int]:
    """The unit of a loss that is a mean over examples."""
    return {"pairs": batch.num_examples}


def tokens(batch: TreeBatch, config: object) -> dict[str, int]:
    """The unit of a loss that is a mean over response tokens."""
    return {"tokens": batch.num_tokens}


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """The dtype that sums for metrics are kept in: float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def sum_and_count(values: Tensor, mask: Tensor | None = None) -> Metric:
    """(sum, count) of `values`, over `mask` where one is given; detached, in float64."""
    values = values.detach().to(accumulation_dtype(values.device))
    if mask is None:
        return values.sum(), torch.tensor(values.numel(), device=values.device)
    return torch.where(mask, values, 0.0).sum(), mask.sum()


def masked_sum(x: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
    """Sum of `x` over `dim` where `mask` is True; what stands elsewhere, NaN too, is not read.

    Raises:
        ValueError: the shapes differ, or the mask is not bool.
    """
    check_shapes(x=(x, "..."), mask=(mask, "..."))
    return torch.where(mask, x, 0.0).sum(dim)


def masked_mean(x: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
    """Mean of `x` over `dim` where `mask` is True; 0 where a row has no True at all.

    Raises:
        ValueError: the shapes differ, or the mask is not bool.
    """
    return masked_sum(x, mask, dim) / mask.sum(dim).clamp(min=1)


def check_shapes(**arguments: tuple[Tensor, str]) -> None:
    """Raise ValueError unless every argument has the shape that its letters name.

        check_shapes(values=(values, "B T"), mask=(mask, "B T"), last_values=(last_values, "B"))

    A letter is one axis, of one size in all arguments; "..." is any shape, the same in all that
    have it. Without this, (B, T) log-probs where a sum (B,) is meant would pass in silence, and
    broadcasting would average the wrong thing. A mask must be bool.
    """
    sizes: dict[str, tuple[int, ...]] = {}
    for name, (tensor, letters) in arguments.items():
        shape, axes = tuple(tensor.shape), letters.split()
        if letters != "..." and len(shape) != len(axes):
            raise ValueError(f"{name} has shape {shape}, expected {_shape_of(axes)}")
        parts = [shape] if letters == "..." else [(size,) for size in shape]
        for axis, part in zip(axes, parts, strict=True):
            if sizes.setdefault(axis, part) != part:
                raise ValueError(_disagreement(arguments))
        if name == "mask" and tensor.dtype != torch.bool:
            raise ValueError(
                f"mask is {tensor.dtype}, expected torch.bool: True on response tokens"
            )


def _shape_of(axes: Sequence[str]) -> str:
    """Axes as a shape is written: (B,) or (B, T)."""
    return f"({axes[0]},)" if len(axes) == 1 else f"({', '.join(axes)})"


def _disagreement(arguments: dict[str, tuple[Tensor, str]]) -> str:
    """Every argument with its shape and the one that was expected."""
    found = [
        f"{name} {tuple(tensor.shape)}"
        + (f" as {_shape_of(axes.split())}" if axes != "..." else "")
        for name, (tensor, axes) in arguments.items()
    ]
    return "shapes differ: " + ", ".join(found)
