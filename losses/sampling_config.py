"""How responses are drawn: the flags that every method with rollouts shares."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class SamplingConfig:
    """Inherited by the config of a loss that trains on what the policy samples."""

    max_new_tokens: int = 64
    """Longest response, in tokens."""
    stop_tokens: str | None = None
    """Tokens that end a response, as the end token always does: <end_of_turn>,<|im_end|>."""
    temperature: float = 1.0
    """Divides the logits, when sampling and in every log-prob since."""
    top_k: int = 0
    """Sample among the k likeliest tokens; 0: all. Log-probs stay the whole distribution's."""
    top_p: float = 1.0
    """Sample among the fewest tokens with this share of the mass. Log-probs as with --top_k."""

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"--{name} {getattr(self, name)} must be above 0 and finite")
        if not 0 <= self.top_k < math.inf:
            raise ValueError(f"--top_k {self.top_k} must not be negative, and finite")
        if not 0 <= self.top_p <= 1:
            raise ValueError(f"--top_p {self.top_p} must be between 0 and 1")
        if self.top_p == 0:
            raise ValueError("--top_p 0 leaves no token; 1 is off")
