"""Configuration of a run: the flags every loss shares, and the defaults that depend on the loss.

A loss's own flags stand in its file, losses/<name>.py. Standard library only: the command line
reads this before torch is imported.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from data.errors import NO_INPUT, USAGE, InputError
from data.options import ReadOptions, read_options
from runtime.files import read_json

# Flags that name what a run reads; those of the losses' own.
READ_FLAGS = ("model", "data", "eval_data", "chat_template", "config")
READ_LOSS_FLAGS = ("ref_model", "reward", "prompts")


@dataclass(frozen=True)
class TrainConfig:
    loss: str
    """Which method to train with."""
    model: str = "pocket"
    """Model to start from: a directory, a hub id, or pocket, the built-in few-second model."""
    data: str = "pocket"
    """Training data: pocket, piqa, a hub id, file, directory or glob; several: a,b or a=2,b=0.5."""
    eval_data: str | None = None
    """Held-out data (default: the validation split beside the training data, or a tenth)."""
    split: str | None = None
    """Which split to train on, or TRAIN,HELDOUT (default: the train split that fits the loss)."""
    columns: str | None = None
    """Which of their columns is ours: prompt=instruction+input,chosen=best,system=system."""
    ignore: str | None = None
    """Columns and message keys to leave unread on purpose, comma-separated."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """The first bad row ends the run, or bad rows are left out and counted (at most a fifth)."""
    chat: bool = False
    """Make chat messages of rows that are strings, for the model's chat template."""
    chat_template: str | None = None
    """A file with the chat template to use in place of the tokenizer's own; saved with final/."""
    train_on: Literal["all", "last"] = "all"
    """Of a conversation train every turn of the assistant, or the last. For sft."""
    output_dir: str | None = None
    """The run directory (default: runs/LOSS)."""
    overwrite: bool = False
    """Replace an earlier run in the run directory; one that did not finish is gone on with else."""
    resume: bool = False
    """Refuse to start anew: there must be a run in the run directory to go on with."""
    allow_changed: str | None = None
    """Flags that may differ from those the run was begun with, comma-separated; data, model too."""

    max_steps: int | None = None
    """Optimizer steps (default: as many as --epochs takes)."""
    epochs: float = 1.0
    """Passes over the training rows, where --max_steps is not given."""
    batch_size: int = 16
    """Rows per optimizer step, over all processes."""
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

    save_every: int | None = None
    """Steps between two checkpoints (default: ten minutes, and none stays when all is done)."""
    keep: int = 2
    """So many checkpoints stay, the newest; an older one serves where the newest is damaged."""
    keep_best: str | None = None
    """Save the model of the best evaluation in best/, by this held-out metric: loss, accuracy."""
    patience: int | None = None
    """Stop after so many evaluations in a row that were not better by --keep_best's metric."""
    spike_guard: float = 0.0
    """Skip steps whose loss or gradient norm is so many standard deviations above 128 steps'."""

    eval_every: int = 0
    """Evaluate on the held-out rows every so many steps; 0: only before and after."""
    lm_eval: bool = False
    """At every evaluation let lm-eval's own piqa task score the held-out rows too (PIQA rows)."""
    seed: int = 0
    """Fixes the order of the rows and whatever else is drawn."""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "no"
    """Autocast the forward (auto: bf16 where that is faster); float32 weights and optimizer."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of weights and optimizer; a narrower one would round small updates away."""
    gradient_checkpointing: bool = False
    """Recompute activations in backward: about a third slower, far less memory."""
    save_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights in final/ (auto: that of --model's files)."""
    layout: Literal["auto", "tree", "rectangle"] = "auto"
    """Token trees where the model takes their mask (auto), or the padded rectangle."""
    report_to: str | None = None
    """Trackers besides the files, as Accelerate names them, comma-separated: tensorboard,wandb."""

    export: str | None = None
    """Make a model of this run directory's newest checkpoint, in its folder export/, and stop."""
    config: str | None = None
    """A YAML file of flags; the command line overrides it."""
    dry_run: bool = False
    """Check everything, show two examples with the trained tokens marked and the steps; stop."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str) and not value.strip():
                raise ValueError(f"--{field.name} is empty; leave it out, or give a value")
            if isinstance(value, str) and "\0" in value:
                raise ValueError(f"--{field.name} {value!r}: no name has a NUL in it")
        positive = ("max_steps", "epochs", "batch_size", "max_tokens", "learning_rate")
        for name in positive:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"--{name} {value} must be above 0 and finite")
        for name in (
            "warmup",
            "weight_decay",
            "max_grad_norm",
            "eval_every",
            "seed",
            "spike_guard",
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"--{name} {getattr(self, name)} must be 0 or above, and finite")
        for name in ("keep", "save_every", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} {value} must be 1 or above")
        if self.patience is not None and self.keep_best is None:
            raise ValueError("--patience needs --keep_best METRIC: better by what?")
        if self.resume and self.overwrite:
            raise ValueError("--resume and --overwrite exclude each other")
        if self.max_length < 2:
            raise ValueError(f"--max_length {self.max_length}: at least 2, a prompt and a response")
        _ = self.reading

    @property
    def reading(self) -> ReadOptions:
        """How the rows are to be read."""
        return read_options(
            columns=self.columns,
            ignore=self.ignore,
            split=self.split,
            bad_rows=self.bad_rows,
            chat=self.chat,
            train_on=self.train_on,
        )


@dataclass(frozen=True)
class Args:
    """The command line as given, and of every value that is not the default where it is from."""

    train: TrainConfig
    loss_flags: dict[str, Any]  # of the loss's own config
    origin: dict[str, str]
    started_in: str | None = None  # where relative paths begin, if not here: --export


@dataclass(frozen=True)
class Run:
    """What a run depends on: every flag has its value."""

    train: TrainConfig
    loss: Any  # the loss's own config
    origin: dict[str, str]  # of every value that is not the default

    @property
    def learning_rate(self) -> float:
        """The peak; the loss's own where none was given."""
        assert self.train.learning_rate is not None, "resolve() fills it in"
        return self.train.learning_rate

    @property
    def output_dir(self) -> str:
        assert self.train.output_dir is not None, "resolve() fills it in"
        return self.train.output_dir


def resolve(
    args: Args,
    loss_config: type,
    loss_learning_rate: float,
    presets: Mapping[str, Mapping[str, Any]],
) -> Run:
    """Fill in what the user left open, and say where each value came from.

    Args:
        loss_config: class of the loss's own flags.
        loss_learning_rate: the loss's default for --learning_rate.
        presets: flags of the pocket world, by loss; they hold where both model and data are pocket,
            for what the user has not given.

    Raises:
        InputError: flags of the loss that do not go together.
    """
    config = args.train
    preset: Mapping[str, Any] = {}
    if config.model == "pocket" and config.data == "pocket":
        given = presets.get(config.loss, {})
        preset = {name: value for name, value in given.items() if name not in args.origin}
    defaults = {"learning_rate": loss_learning_rate, "output_dir": f"runs/{config.loss}"}
    shared = {n: preset.get(n, v) for n, v in defaults.items() if getattr(config, n) is None}
    shared |= {n: v for n, v in preset.items() if hasattr(config, n)}
    own = {n: v for n, v in preset.items() if n in args.loss_flags}
    origin = {n: f"default for {'pocket' if n in preset else config.loss}" for n in shared | own}
    try:
        loss = loss_config(**args.loss_flags | own)
    except ValueError as error:
        raise InputError(str(error), USAGE) from error
    filled = replace(config, **shared)
    filled = replace(filled, output_dir=os.path.expanduser(str(filled.output_dir)))
    return Run(filled, loss, origin | args.origin)


def args_of_run(folder: Path) -> Args:
    """The command line that a run was started with, to export its newest checkpoint.

    Raises:
        InputError: there is no run, or another version of this program made it.
    """
    folder = folder.resolve()
    made = read_json(folder / "config.json")
    if not isinstance(made.get("train"), dict) or not isinstance(made.get("loss"), dict):
        raise InputError(f"--export {folder}: no run directory (no config.json of a run)", NO_INPUT)
    if read_json(folder / "status.json").get("state") == "finished":
        raise InputError(f"--export {folder}: the run is finished; its model is in final/", USAGE)
    given = made["train"] | {"output_dir": str(folder), "export": str(folder), "config": None}
    try:
        # As on the run's own command line: nothing is left to the defaults of today.
        config = TrainConfig(**given | {"overwrite": False, "resume": False, "dry_run": False})
    except (TypeError, ValueError) as error:
        raise InputError(f"--export {folder}: config.json: {error}", USAGE) from error
    return Args(config, made["loss"], made.get("origin", {}), made.get("started_in"))


def check_paths(run: Run) -> None:
    """Raise InputError if something that is read lies in the directory that is written.

    A run may go on from its own directory, and replaces what is in it.
    """
    out = Path(run.output_dir).resolve()
    given = {name: getattr(run.train, name) for name in READ_FLAGS}
    given |= {name: getattr(run.loss, name, None) for name in READ_LOSS_FLAGS}
    for name, value in given.items():
        for part in str(value or "").split(","):
            # Without a weight (rows.jsonl=2), and of a pattern the folder that it begins with.
            fixed = re.split(r"[*?\[]", re.sub(r"=[\d.]+$", "", part))[0]
            if not fixed or (name == "reward" and ":" in part):
                continue
            path = Path(os.path.expanduser(fixed))
            if path.exists() and (path.resolve() == out or out in path.resolve().parents):
                raise InputError(
                    f"--{name} {part} lies in --output_dir {run.output_dir}, which is written and"
                    " replaced; give another --output_dir",
                    USAGE,
                )
