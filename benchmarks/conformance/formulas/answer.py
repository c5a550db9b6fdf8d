"""From a case to its answer: outputs and gradients, every number with its scale."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from ..cases.base import Case
from . import batches, units
from .arithmetic import ZERO, Dual, Kinks, Rounded, total, variable

COTANGENTS = 1.0, -0.5, 2.0, 0.75, -1.5  # over and over, output by output


@dataclass(frozen=True)
class Family:
    function: str
    outputs: tuple[str, ...]
    differentiable: tuple[str, ...]  # inputs with a gradient
    optional: tuple[str, ...]  # of those, constants in training: no gradient is no mistake
    paper: str
    formula: Callable[..., Dual] | None = None  # of one pair or token, where rows do not couple


def _dpo(paper: str) -> Family:
    policy = ("policy_chosen_logps", "policy_rejected_logps")
    ref = ("ref_chosen_logps", "ref_rejected_logps")
    return Family("dpo_loss", ("loss",), policy + ref, ref, paper, units.dpo)


FAMILIES = {
    "sft": Family(
        "sft_loss", ("loss",), ("logps",), (), "arXiv 2203.02155, section 3.5", units.sft
    ),
    "reward": Family(
        "reward_loss",
        ("loss",),
        ("chosen_scores", "rejected_scores", "margin"),
        ("margin",),
        "arXiv 2203.02155 eq. 1; margin: 2307.09288 eq. 2; centring: 2312.09244 eq. 2",
        units.reward,
    ),
    "dpo": _dpo("arXiv 2305.18290 eq. 7"),
    "cdpo": _dpo("Mitchell 2023, A note on DPO with noisy preferences, eq. 3"),
    "robust": _dpo("arXiv 2403.00409 eq. 12"),
    "ipo": _dpo("arXiv 2310.12036 eq. 17"),
    "hinge": _dpo("arXiv 2305.10425 eq. 1, on the log-ratio as in 2309.06657"),
    "orpo": Family(
        "orpo_loss",
        ("loss",),
        ("chosen_mean_logps", "rejected_mean_logps"),
        (),
        "arXiv 2403.07691 eq. 6 and 7",
        units.orpo,
    ),
    "simpo": Family(
        "simpo_loss",
        ("loss",),
        ("chosen_mean_logps", "rejected_mean_logps"),
        (),
        "arXiv 2405.14734 eq. 6",
        units.simpo,
    ),
    "kl": Family(
        "kl_estimate",
        ("kl",),
        ("logps", "ref_logps"),
        ("ref_logps",),
        "Schulman 2020, Approximating KL Divergence",
        units.kl,
    ),
    "gae": Family(
        "gae",
        ("advantages", "returns"),
        ("rewards", "values", "last_values"),
        ("rewards", "values", "last_values"),
        "arXiv 1506.02438 eq. 11 and 16",
    ),
    "whiten": Family(
        "masked_whiten", ("whitened",), ("x",), ("x",), "OpenAI lm-human-preferences, whiten"
    ),
    "policy": Family(
        "ppo_policy_loss",
        ("loss",),
        ("logps", "old_logps", "advantages"),
        ("old_logps", "advantages"),
        "arXiv 1707.06347 eq. 7",
        units.policy,
    ),
    "value": Family(
        "ppo_value_loss",
        ("loss",),
        ("values", "old_values", "returns"),
        ("old_values", "returns"),
        "OpenAI baselines ppo2, vf_loss",
        units.value,
    ),
    "logprobs": Family(
        "token_logprobs", ("logps",), ("hidden", "weight", "bias"), (), "log softmax"
    ),
    "reduce": Family("reduce", ("loss",), ("losses",), (), "arXiv 2203.02155; 2403.07691 eq. 3"),
}


@dataclass(frozen=True)
class Answer:
    outputs: dict[str, Any]  # (nested lists of) Rounded
    gradients: dict[str, Any]
    cotangents: dict[str, Any]
    terms: int  # numbers that go into one output, at most
    nearest_kink: Any


def answer(case: Case) -> Answer:
    """The exact outputs of a case and the gradient of sum(cotangent x output)."""
    Kinks.nearest = math.inf
    family = FAMILIES[case.family]
    solve = _of_units if family.formula else SOLVERS[case.family]
    outputs, gradients, cotangents, terms = solve(case)
    named = {k: gradients[k] for k in family.differentiable if k in case.inputs}
    return Answer(outputs, named, cotangents, terms, Kinks.nearest)


def like(table: Any, weights: Any) -> Any:
    """A (nested) list of the table's shape, filled from an iterator."""
    return [like(row, weights) for row in table] if isinstance(table, list) else next(weights)


def _of_units(case: Case) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], int]:
    """Pairs (B,) or tokens (B, T): the formula for each that the mask does not leave out."""
    family = FAMILIES[case.family]
    assert family.formula is not None
    names = [k for k in case.inputs if k != "mask"]
    cotangents = like(case.inputs[names[0]], cycle(COTANGENTS))
    formula = family.formula

    def solve(xs: list[Any], mask: Any, c: Any) -> list[Any]:
        """[output, gradient by the first input, by the second, ...], nested like the inputs."""
        if isinstance(c, list):
            masks = mask if isinstance(mask, list) else [mask] * len(c)
            rows = [
                solve(list(row[:-2]), row[-2], row[-1]) for row in zip(*xs, masks, c, strict=True)
            ]
            return [list(column) for column in zip(*rows, strict=True)]
        if not mask:
            return [Rounded(ZERO)] * (1 + len(names))
        out = formula(
            **{k: variable(x, i) for i, (k, x) in enumerate(zip(names, xs, strict=True))},
            **case.options,
        )
        up = variable(c, -1).x
        by = [total([up * out.d.get(i, Rounded(ZERO))]) for i in range(len(names))]
        return [out.x, *by]

    out, *by = solve([case.inputs[k] for k in names], case.inputs.get("mask", True), cotangents)
    gradients = dict(zip(names, by, strict=True))
    return {family.outputs[0]: out}, gradients, {family.outputs[0]: cotangents}, len(names)


def _gae(case: Case) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], int]:
    rewards, values, mask = (case.inputs[k] for k in ("rewards", "values", "mask"))
    last = case.inputs.get("last_values", [None] * len(mask))
    weights = cycle(COTANGENTS)
    c = {"advantages": like(mask, weights), "returns": like(mask, weights)}
    rows = [
        batches.gae(*row, **case.options)
        for row in zip(rewards, values, mask, last, c["advantages"], c["returns"], strict=True)
    ]
    adv, ret, by_reward, by_value, by_last = (list(x) for x in zip(*rows, strict=True))
    gradients = {"rewards": by_reward, "values": by_value, "last_values": by_last}
    return {"advantages": adv, "returns": ret}, gradients, c, 3 * max(map(sum, mask)) or 1


def _whiten(case: Case) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], int]:
    x, mask = case.inputs["x"], case.inputs["mask"]
    c = like(mask, cycle(COTANGENTS))
    flat = [[a for row in table for a in row] for table in (x, mask, c)]
    out, grad = batches.whiten(*flat, **case.options)
    return (
        {"whitened": like(mask, iter(out))},
        {"x": like(mask, iter(grad))},
        {"whitened": c},
        max(1, sum(flat[1])),
    )


def _head(case: Case) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], int]:
    hidden, weight, targets = (case.inputs[k] for k in ("hidden", "weight", "targets"))
    c = like(targets, cycle(COTANGENTS))
    found = batches.head(hidden, weight, targets, case.inputs.get("bias"), c, **case.options)
    gradients = dict(zip(("hidden", "weight", "bias"), found[1:], strict=True))
    terms = len(hidden) + len(weight) + len(weight[0])
    return {"logps": found[0]}, gradients, {"logps": c}, terms


def _reduce(case: Case) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], int]:
    losses, mask = case.inputs["losses"], case.inputs["mask"]
    out, grad = batches.reduce(losses, mask, 1.0, unit=case.options["unit"])
    return {"loss": out}, {"losses": grad}, {"loss": 1.0}, max(1, sum(map(sum, mask)))


SOLVERS = {"gae": _gae, "whiten": _whiten, "logprobs": _head, "reduce": _reduce}
