"""TRL's side of a run, in an environment that has TRL: it imports nothing of this project.

    TRL_PYTHON benchmarks/versus/trl_child.py settings.json

settings.json has `loss`, `model`, `data` (rows in the order in which they are trained), `reward`
(ppo), `output_dir`, `arguments` of TRL's configuration, `save`, and two files to write: `steps`, a
line of JSON a step, and `result`.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("trl", "torch", "transformers", "accelerate", "datasets")


def peak_bytes() -> int:
    """Most memory that this process has held."""
    status = Path("/proc/self/status").read_text("utf-8")
    return 1024 * int(re.findall(r"^VmHWM:\s*(\d+) kB", status, re.M)[0])


def trainer_classes(loss: str) -> tuple[Any, Any]:
    """(trainer, configuration), with all that they import."""
    if loss == "dpo":
        from trl import DPOConfig, DPOTrainer

        return DPOTrainer, DPOConfig
    if loss == "reward":
        from trl import RewardConfig, RewardTrainer

        return RewardTrainer, RewardConfig
    if loss == "sft":
        from trl import SFTConfig, SFTTrainer

        return SFTTrainer, SFTConfig
    if loss == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        return ORPOTrainer, ORPOConfig
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    return PPOTrainer, PPOConfig


def rows_of(file: str) -> Any:
    from datasets import load_dataset

    return load_dataset("json", data_files=file, split="train")


def make_trainer(settings: dict[str, Any], trainer_class: Any, config: Any) -> Any:
    """The trainer of every loss but PPO's."""
    model, more = settings["model"], {}
    if settings["loss"] == "orpo":
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        # By a name it would be loaded in the dtype of its files; the other trainers take float32.
        model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(settings["model"])
        # It puts BOS before every prompt, also where the tokenizer itself, and so the other
        # trainers, do not: without one known it trains the tokens that they do.
        if tokenizer("a")["input_ids"][0] != tokenizer.bos_token_id:
            tokenizer.bos_token = None
        more["processing_class"] = tokenizer
    return trainer_class(model=model, args=config, train_dataset=rows_of(settings["data"]), **more)


def make_ppo_trainer(settings: dict[str, Any], trainer_class: Any, config: Any) -> Any:
    """PPO's: policy and reference of `model`, value and reward model of `reward`."""
    import torch
    from torch.utils.data import DataLoader
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    tokenizer = AutoTokenizer.from_pretrained(settings["reward"], padding_side="left")
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32)
        for _ in range(2)
    )
    value, reward = (
        AutoModelForSequenceClassification.from_pretrained(
            settings["reward"], num_labels=1, dtype=torch.float32
        )
        for _ in range(2)
    )
    rows = rows_of(settings["data"])
    tokens = rows.map(
        lambda row: {"input_ids": tokenizer(row["prompt"])["input_ids"]},
        remove_columns=rows.column_names,
    )
    trainer = trainer_class(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=tokens,
        eval_dataset=tokens,
    )
    # In the order of the file: it would shuffle.
    loader = DataLoader(
        tokens,
        batch_size=config.per_device_train_batch_size,
        collate_fn=trainer.data_collator,
    )
    trainer.dataloader = trainer.accelerator.prepare(loader)
    return trainer


def note_losses(trainer: Any, losses: list[Any]) -> None:
    """Have every training step put its loss into `losses`; it is read when all is done."""
    step: Callable[..., Any] = trainer.training_step

    def noting(*args: Any, **kwargs: Any) -> Any:
        loss = step(*args, **kwargs)
        losses.append(loss.detach().clone())
        return loss

    trainer.training_step = noting


def note_lengths(tokenizer: Any, lengths: list[float]) -> None:
    """Have PPO's sampling put the mean length of its responses into `lengths`."""
    from trl.experimental.ppo import ppo_trainer

    generate: Callable[..., Any] = ppo_trainer.batch_generation

    def noting(model: Any, queries: Any, *args: Any, **kwargs: Any) -> Any:
        both, logits = generate(model, queries, *args, **kwargs)
        ended = both[:, queries.shape[1] :] == tokenizer.eos_token_id
        after = (ended.cumsum(1) - ended.long()) > 0  # the end token itself is of the response
        lengths.append((~after).sum(1).float().mean().item())
        return both, logits

    ppo_trainer.batch_generation = noting


def first_metrics(trainer: Any) -> dict[str, float]:
    """What the trainer has noted of its first step, and not logged yet."""
    for name in ("_metrics", "_stored_metrics"):
        noted = getattr(trainer, name, None)
        if noted:
            return {key: float(values[0]) for key, values in noted["train"].items() if values}
    return {}


def clock_class(settings: dict[str, Any], metrics: dict[str, float]) -> Any:
    """A callback that writes a line when a step has ended."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        trainer: Any = None

        def on_step_end(self, *_: Any, **__: Any) -> None:
            with open(settings["steps"], "a", encoding="utf-8") as file:
                file.write(json.dumps({"at": time.time()}) + "\n")
            if not metrics and self.trainer is not None:
                metrics.update(first_metrics(self.trainer))

    return Clock


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    trainer_class, config_class = trainer_classes(settings["loss"])
    import torch

    imports = peak_bytes()
    config = config_class(output_dir=settings["output_dir"], **settings["arguments"])
    make = make_ppo_trainer if settings["loss"] == "ppo" else make_trainer
    trainer = make(settings, trainer_class, config)
    metrics: dict[str, float] = {}
    clock = clock_class(settings, metrics)()
    clock.trainer = trainer
    trainer.add_callback(clock)
    losses: list[Any] = []
    lengths: list[float] = []
    if settings["loss"] == "ppo":
        note_lengths(trainer.processing_class, lengths)
    else:
        note_losses(trainer, losses)
    trainer.train()
    result = {
        "peak_bytes": peak_bytes(),
        "imports_bytes": imports,
        "losses": [float(loss) for loss in losses],
        "metrics": metrics,
        "response_length": sum(lengths) / len(lengths) if lengths else None,
        "threads": torch.get_num_threads(),
        "precision": "bf16" if config.bf16 else "float32",
        "versions": {name: version(name) for name in PACKAGES},
    }
    if settings["save"]:
        trainer.save_model()
    Path(settings["result"]).write_text(json.dumps(result), "utf-8")


if __name__ == "__main__":
    main()
