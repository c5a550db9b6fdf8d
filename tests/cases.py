"""One ordinary input for every function, away from its kinks: what the contract is tested on."""

from dataclasses import dataclass, field
from functools import partial

import torch
from compare import mask_of, random

import losses

MASK = mask_of("111100", "110000", "011101", "100000")
B, T = MASK.shape


@dataclass
class Case:
    name: str  # of the function in `losses`
    tensors: dict  # keyword -> differentiable input
    fixed: dict = field(default_factory=dict)  # keyword -> input without a gradient
    options: dict = field(default_factory=dict)

    @property
    def fn(self):
        return getattr(losses, self.name)

    @property
    def mask(self):
        return self.fixed.get("mask")

    def __str__(self):
        return "-".join([self.name, *(str(v) for v in self.options.values())])


def case(name, *inputs, shape=(B, T), extra=None, fixed=None, **options):
    tensors = {k: random(*shape, low=-3, high=-0.1, seed=i) for i, k in enumerate(inputs)}
    return Case(name, tensors | (extra or {}), fixed or {}, options)


masked = partial(case, fixed={"mask": MASK})
pair = partial(case, shape=(B,))
dpo = partial(
    pair,
    "dpo_loss",
    "policy_chosen_logps",
    "policy_rejected_logps",
    "ref_chosen_logps",
    "ref_rejected_logps",
)
scores = partial(pair, "reward_loss", "chosen_scores", "rejected_scores")
gae = partial(masked, "gae", "rewards", "values")

CASES = [
    masked("sft_loss", "logps"),
    scores(),
    scores(extra={"margin": random(B, seed=7)}, center_coef=0.01),
    dpo(),
    dpo(label_smoothing=0.1),
    dpo(variant="robust", label_smoothing=0.1),
    dpo(variant="ipo"),
    dpo(variant="hinge"),
    pair("orpo_loss", "chosen_mean_logps", "rejected_mean_logps"),
    pair("simpo_loss", "chosen_mean_logps", "rejected_mean_logps"),
    pair("simpo_loss", "chosen_mean_logps", "rejected_mean_logps", beta=2.5, gamma=0.25),
    *(case("kl_estimate", "logps", "ref_logps", kind=kind) for kind in ("k1", "k2", "k3")),
    gae(gamma=0.9),
    gae(extra={"last_values": random(B, seed=7)}, lam=0.8),
    masked("masked_whiten", "x"),
    masked("masked_whiten", "x", shift_mean=False),
    masked("ppo_policy_loss", "logps", "old_logps", "advantages"),
    masked("ppo_value_loss", "values", "old_values", "returns"),
    masked("masked_sum", "x"),
    masked("masked_mean", "x"),
]

HEAD = Case(
    "token_logprobs",
    {"hidden": random(5, 3, seed=1), "weight": random(4, 3, seed=2), "bias": random(4, seed=3)},
    {"targets": torch.tensor([0, 3, 1, 1, 2])},
    {"temperature": 0.7, "chunk_size": 2},
)
