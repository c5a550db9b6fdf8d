"""The knobs every loss shares. A loss's own knobs stand in its file, losses/<name>.py.

Standard library only: the command line reads this before torch is imported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from runtime.cli import Args


@dataclass(frozen=True)
class TrainConfig:
    loss: str
    """Which method to train with."""
    model: str = "pocket"
    """Model to start from: a directory, a hub id, or pocket, the built-in few-second model."""
    data: str = "pocket"
    """Training data: pocket, piqa, a hub id, directory, .jsonl, .json, .csv or .parquet file."""
    eval_data: str | None = None
    """Held-out data (default: the validation split beside the training data, or a tenth)."""
    columns: str | None = None
    """Other column names, ours=theirs: chosen=preferred,rejected=other."""
    output_dir: str | None = None
    """The run directory (default: runs/LOSS)."""
    overwrite: bool = False
    """Replace an earlier run in the run directory."""

    max_steps: int | None = None
    """Optimizer steps (default: as many as --epochs takes)."""
    epochs: float = 1.0
    """Passes over the training rows, where --max_steps is not given."""
    batch_size: int | None = None
    """Rows per optimizer step, over all processes (default: 16)."""
    max_tokens: int = 4096
    """Tokens per forward on each process; a step is cut into as many micro-batches as it takes."""
    max_length: int = 1024
    """Longest prompt + response in tokens: see --overlong. PPO leaves out prompts without room."""
    overlong: Literal["truncate", "drop"] = "truncate"
    """Of longer rows cut the response's end (no end token then), or drop them. Not for ppo."""

    learning_rate: float | None = None
    """Peak learning rate (default: the loss's own)."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Learning rate after the warm-up: constant, or down to 0 at the last step."""
    warmup: float = 0.1
    """Warm-up: a share of the steps if below 1, else a number of steps."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay, on matrices only."""
    max_grad_norm: float = 1.0
    """Clip the gradient to this global norm; 0 leaves it."""

    eval_every: int = 0
    """Evaluate on the held-out rows every so many steps; 0: only before and after."""
    lm_eval: bool = False
    """At every evaluation let lm-eval's own piqa task score the held-out rows too (PIQA rows)."""
    seed: int = 0
    """Fixes the order of the rows and whatever else is drawn."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Autocast the forward; weights and optimizer stay in float32."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Precision of the weights themselves, the optimizer's included."""
    gradient_checkpointing: bool = False
    """Recompute activations in backward: about a third slower, far less memory."""
    layout: Literal["auto", "tree", "rectangle"] = "auto"
    """Token trees where the model takes their mask (auto), or the padded rectangle."""
    report_to: str | None = None
    """Trackers besides the files, as Accelerate names them, comma-separated: tensorboard,wandb."""

    config: str | None = None
    """A YAML file of flags; the command line overrides it."""
    dry_run: bool = False
    """Check everything, show two examples with the trained tokens marked and the steps; stop."""

    def __post_init__(self) -> None:
        positive = ("max_steps", "epochs", "batch_size", "max_tokens", "learning_rate")
        for name in positive:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"--{name} {value} must be above 0 and finite")
        for name in ("warmup", "weight_decay", "max_grad_norm", "eval_every", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"--{name} {getattr(self, name)} must be 0 or above, and finite")
        if self.max_length < 2:
            raise ValueError(f"--max_length {self.max_length}: at least 2, a prompt and a response")


def resolve(
    args: Args, loss_learning_rate: float, presets: Mapping[str, Mapping[str, float]]
) -> Args:
    """Fill in what the user left open, and say where each value came from.

    `presets` are the pocket world's, by loss; they hold where both model and data are pocket.
    """
    config = args.config
    here = config.model == "pocket" and config.data == "pocket"
    preset = presets.get(config.loss, {}) if here else {}
    general = {
        "batch_size": 16,
        "learning_rate": loss_learning_rate,
        "output_dir": f"runs/{config.loss}",
    }
    filled: dict[str, Any] = {}
    for name in ("max_steps", *general):
        if getattr(config, name) is None and (name in preset or name in general):
            filled[name] = preset.get(name, general.get(name))
    own = {k: v for k, v in preset.items() if k in args.loss_flags and k not in args.origin}
    origin = {
        name: f"default for {'pocket' if name in preset else config.loss}" for name in filled | own
    }
    return replace(
        args,
        config=replace(config, **filled),
        loss_flags=args.loss_flags | own,
        origin=origin | args.origin,
    )
