"""What is measured: a cell is a loss, a batch size and a way to set TRL up, by name.

dpo/8/tuned   steps of 8 rows; TRL in one of the four rows below
epoch         a whole epoch of DPO in batches of 16, from the command to its end
launch        from `accelerate launch` to the first optimizer step, with 16,384 pairs
ppo           rollouts of 8 prompts, 32 new tokens and 4 passes, against the last TRL that has PPO
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["steps", "epoch", "launch", "ppo"]

WARM_UP = 3  # steps that are not counted
LAUNCH_ROWS = 16_384
EPOCH_ROWS = 800  # at most
COMPARED = 20  # losses of the first steps
# Relative differences of losses. bfloat16 alone moves a response's log-prob by half a nat, and so
# DPO's loss of a batch of one row by 5e-2: there the check tells other rows or losses, no more.
SAME, SAME_BF16 = 1e-4, 1e-1
PROBE_STEPS = 4  # of the runs that find TRL's faster precision; the last two count

# TRL's settings by row. Its own defaults are bfloat16 and gradient checkpointing.
TUNED: dict[str, Any] = {"bf16": False, "gradient_checkpointing": False}
ROWS = {
    "default": "TRL's defaults: bfloat16 autocast, gradient checkpointing",
    "tuned": "float32, no gradient checkpointing",
    "best": "tuned, reference log-probs computed before, rows grouped by length, bf16 if faster",
    "bf16": "ours in bf16; TRL tuned, in the faster of float32 and bf16",
}
# The same on both sides; large enough that the losses of 20 steps move.
LEARNING_RATES = {"sft": 1e-5, "dpo": 5e-6, "orpo": 5e-6, "reward": 1e-5, "ppo": 1e-6}
# Our names of metrics of the first step, and TRL's, that must agree too: DPO starts at ln 2
# whatever the tokens are.
SAME_METRICS = {
    "dpo": {name: name for name in ("logps/chosen", "logps/rejected")},
    "orpo": {f"mean_logps/{name}": f"logps/{name}" for name in ("chosen", "rejected")},
}
ALL = (
    *("dpo/8/tuned", "sft/8/tuned", "reward/8/tuned", "orpo/8/tuned", "dpo/32/tuned"),
    *("dpo/1/tuned", "dpo/16/tuned", "dpo/8/best", "dpo/8/bf16", "epoch", "launch", "ppo"),
    "dpo/8/default",
)
PPO = {"max_new_tokens": 32, "ppo_epochs": 4}


@dataclass(frozen=True)
class Cell:
    name: str
    kind: Kind
    loss: str
    batch_size: int
    row: str = "tuned"

    @property
    def grouped(self) -> bool:
        """Both sides take the batches that grouping by length makes."""
        return self.row == "best"

    @property
    def chooses_precision(self) -> bool:
        return self.row in ("best", "bf16")

    @property
    def statistic(self) -> Literal["median", "mean"]:
        """Of a run's steps: batches of like lengths differ too much for a median."""
        return "mean" if self.grouped else "median"

    @property
    def warm_up(self) -> int:
        return 1 if self.kind == "ppo" else WARM_UP  # a rollout has four optimizer steps

    @property
    def clock(self) -> str:
        """What of a run is compared."""
        return {"epoch": "finished", "launch": "first_step"}.get(self.kind, "step")

    def counted(self, steps: int) -> int:
        """Of `--steps`; those of PPO are rollouts."""
        return max(1, steps // PPO["ppo_epochs"]) if self.kind == "ppo" else steps

    def size(self, steps: int, available: int) -> tuple[int, int]:
        """(rows that both sides are given, steps that both make)."""
        if self.kind == "launch":
            return LAUNCH_ROWS, 1
        if self.kind == "epoch":
            made = max(1, min(available, EPOCH_ROWS) // self.batch_size)
        else:
            made = self.warm_up + self.counted(steps)
        return made * self.batch_size, made

    def tolerance(self, precision: str) -> float:
        """Largest relative difference of two losses; `precision` is TRL's."""
        return SAME if (self.row != "bf16" and precision == "float32") else SAME_BF16

    def our_flags(self, made: int, seed: int) -> list[str]:
        """train.py's, but for paths."""
        flags: dict[str, object] = {
            "loss": self.loss,
            "batch_size": self.batch_size,
            "max_steps": made * (PPO["ppo_epochs"] if self.kind == "ppo" else 1),
            "seed": seed,
            "learning_rate": LEARNING_RATES[self.loss],
            "schedule": "constant",
            "warmup": 0,
            "save_every": 10**6,  # neither side saves before the end
        }
        if self.loss == "dpo":
            flags["beta"] = 0.1
        if self.loss == "orpo":  # TRL's likelihood term
            flags |= {"lam": 0.1, "nll_scope": "full", "nll_reduction": "token"}
        if self.loss == "ppo":  # TRL's does not clip the gradient
            flags |= {**PPO, "rollout_size": self.batch_size, "max_grad_norm": 0}
        if self.row == "bf16":
            flags["mixed_precision"] = "bf16"
        return [part for name, value in flags.items() for part in (f"--{name}", str(value))]

    def trl_arguments(self, made: int, seed: int, precision: str | None = None) -> dict[str, Any]:
        """TRL's configuration, but for paths; `precision` where it is not the row's own."""
        arguments: dict[str, Any] = {
            "per_device_train_batch_size": self.batch_size,
            "gradient_accumulation_steps": 1,
            "seed": seed,
            "learning_rate": LEARNING_RATES[self.loss],
            "lr_scheduler_type": "constant",
            "warmup_steps": 0,
            "weight_decay": 0.0,
            "adam_beta1": 0.9,
            "adam_beta2": 0.999,
            "max_grad_norm": 1.0,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        if self.row != "default":
            arguments |= TUNED
        if precision is not None:
            arguments["bf16"] = precision == "bf16"
        if self.kind == "ppo":
            arguments |= {
                "num_mini_batches": 1,
                "num_ppo_epochs": PPO["ppo_epochs"],
                "total_episodes": made * self.batch_size,
                "response_length": PPO["max_new_tokens"],
                "temperature": 1.0,
                "stop_token": "eos",
                "num_sample_generations": 0,
            }
            return arguments
        arguments |= {"max_steps": made, "train_sampling_strategy": "sequential"}
        if self.loss in ("dpo", "orpo"):
            arguments["beta"] = 0.1
        if self.loss == "sft":
            arguments["completion_only_loss"] = True
        if self.row == "best" and self.loss == "dpo":
            arguments["precompute_ref_log_probs"] = True
        return arguments


def cell_named(name: str) -> Cell:
    """The cell of a name.

    Raises:
        ValueError: there is none.
    """
    if name == "epoch":
        return Cell(name, "epoch", "dpo", 16)
    if name in ("launch", "launch/sft"):
        return Cell(name, "launch", "dpo" if name == "launch" else "sft", 8)
    if name == "ppo":
        return Cell(name, "ppo", "ppo", 8)
    parts = name.split("/")
    if len(parts) == 3 and parts[1].isdecimal() and int(parts[1]) > 0:
        loss, batch_size, row = parts[0], int(parts[1]), parts[2]
        if loss in ("dpo", "orpo", "reward", "sft") and row in ROWS:
            return Cell(name, "steps", loss, batch_size, row)
    raise ValueError(f"no cell {name!r}: such as {', '.join(ALL)}; rows: {', '.join(ROWS)}")
