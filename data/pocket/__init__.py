"""Pocket: the offline default. A generated world of physical-commonsense questions and its base.

Generated; not PIQA. See `world.py` for the objects and goals and the exact grader, `rows.py` for
the preference pairs and what is held out, `text.py` for what the base model has read.

Importing this package costs nothing: it needs the standard library only.
"""

from pathlib import Path

from .rows import heldout_prompts, heldout_rows, train_prompts, train_rows
from .world import grade, pocket_reward, well_formed

__all__ = [
    "BASE_DIR",
    "DEFAULTS",
    "grade",
    "heldout_prompts",
    "heldout_rows",
    "pocket_reward",
    "train_prompts",
    "train_rows",
    "well_formed",
]

BASE_DIR: Path = Path(__file__).parent / "base"

# What works well here within a minute on two slow cores: tuned on this world, not general advice.
DEFAULTS: dict[str, dict[str, int | float]] = {
    "sft": {"max_steps": 100, "batch_size": 32, "learning_rate": 1e-3},
    "reward": {"max_steps": 100, "batch_size": 32, "learning_rate": 1e-3},
    # at beta 0.1 it ranks pairs nearly as well, but what it then samples is broken text
    "dpo": {"max_steps": 100, "batch_size": 32, "learning_rate": 5e-4, "beta": 0.5},
    "orpo": {"max_steps": 100, "batch_size": 32, "learning_rate": 1e-3},
    # at beta 2, the authors', as broken as dpo's at 0.1
    "simpo": {"max_steps": 100, "batch_size": 32, "learning_rate": 5e-4, "beta": 10, "gamma": 3},
    "ppo": {"max_steps": 100, "batch_size": 64, "learning_rate": 5e-4},
}
