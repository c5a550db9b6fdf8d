"""Pairs: the reward model, DPO's variants, ORPO, SimPO."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .base import Case, Draw

DPO_INPUTS = (
    *("policy_chosen_logps", "policy_rejected_logps"),
    *("ref_chosen_logps", "ref_rejected_logps"),
)
MEAN_INPUTS = ("chosen_mean_logps", "rejected_mean_logps")


def cases(draw: Draw) -> Iterator[Case]:
    yield from reward(draw)
    for family in ("dpo", "cdpo", "robust", "ipo", "hinge"):
        yield from dpo(draw, family)
    yield from orpo(draw)
    yield from simpo(draw)


def reward(draw: Draw) -> Iterator[Case]:
    def case(
        name: str,
        story: str,
        chosen: list[float],
        rejected: list[float],
        *cites: str,
        margin: list[float] | None = None,
        **options: float,
    ) -> Case:
        inputs: dict[str, Any] = {"chosen_scores": chosen, "rejected_scores": rejected}
        if margin is not None:
            inputs["margin"] = margin
        return Case("reward", name, story, inputs, options, cites)

    def scores(n: int) -> list[float]:
        return draw.row(n, -3, 3)

    yield case("ordinary", "chosen above rejected, and below", [1.0, 0.25], [0.25, 1.0])
    yield case("tie", "equal scores: ln 2, and gradients of -1/2 and 1/2", [0.5, 64.0], [0.5, 64.0])
    yield case("zero", "a score of 0 is a score", [0.0, 1.0], [1.0, 0.0], "E12")
    yield case(
        "margin",
        "the margin makes the loss larger",
        [1.0, 0.25],
        [0.25, 1.0],
        "E10",
        margin=[0.5, 0.5],
    )
    yield case("margin-zero", "a margin of 0 is none", [1.0], [0.25], margin=[0.0])
    yield case(
        "margin-random", "a margin for each pair", scores(5), scores(5), margin=draw.row(5, 0, 3)
    )
    yield case(
        "centred",
        "centring is on the square of the sum",
        [1.0, -2.0],
        [0.25, 0.5],
        "E9",
        center_coef=0.01,
    )
    yield case(
        "centred-margin",
        "both at once; the margin is not centred",
        scores(4),
        scores(4),
        "E9",
        margin=draw.row(4, 0, 2),
        center_coef=0.1,
    )
    yield case(
        "hopeless",
        "a gap of -19968: the loss is the gap, not log(inf)",
        [-9984.0, -128.0],
        [9984.0, 0.0],
        "E7",
    )
    yield case("certain", "a gap of 80: the loss is e^-80, not 0", [40.0, 20.0], [-40.0, -20.0])
    yield case(
        "saturated", "a gap of 19968: 0, with a gradient of 0 and not NaN", [9984.0], [-9984.0]
    )
    yield case(
        "large-offset",
        "scores around 9984 with a gap of 64: exp of a score overflows",
        [9984.0, 9920.0],
        [9920.0, 9984.0],
    )
    yield case("one", "a batch of one pair", scores(1), scores(1))
    for i in range(3):
        yield case(f"random-{i}", "random", scores(6), scores(6))


def dpo(draw: Draw, family: str) -> Iterator[Case]:
    smoothing = {"cdpo": 0.1, "robust": 0.1}.get(family, 0.0)
    variant = family if family in ("robust", "ipo", "hinge") else "sigmoid"

    def case(name: str, story: str, columns: list[list[float]], *cites: str, **more: Any) -> Case:
        options: dict[str, Any] = {"beta": 0.1}
        if variant != "sigmoid":
            options["variant"] = variant
        if smoothing:
            options["label_smoothing"] = smoothing
        inputs = dict(zip(DPO_INPUTS, columns, strict=True))
        return Case(family, name, story, inputs, options | more, cites)

    def columns(n: int, low: float = -40.0, high: float = -5.0) -> list[list[float]]:
        return draw.table(4, n, low, high)

    yield case(
        "ordinary",
        "the anchor: h = 1.5 from -10, -12, -11 and -11.5",
        [[-10.0], [-12.0], [-11.0], [-11.5]],
        *(["C4"] if family == "cdpo" else []),
        *(["C3"] if family == "ipo" else []),
    )
    same = columns(3)[:2]
    yield case("identity", "policy = reference: h is 0 in every pair", [*same, *same], "C1")
    yield case(
        "reference",
        "only the reference tells the pairs apart",
        [[-8.0, -8.0], [-8.0, -8.0], [-7.0, -9.0], [-9.0, -7.0]],
        "C10",
    )
    yield case("beta", "another beta: once, and inside", columns(3), beta=0.5)
    if smoothing:
        yield case(
            "smoothing", "another share of flipped labels", columns(3), label_smoothing=0.375
        )
    yield case(
        "wrong",
        "beta h = -80: exp overflows bfloat16's log of a sigmoid, not the loss",
        [[-900.0, -96.0], [-100.0, -16.0], [-100.0, -16.0], [-100.0, -96.0]],
    )
    yield case(
        "certain",
        "beta h = 80 and 16: what is left of the loss is exponentially small",
        [[-100.0, -16.0], [-900.0, -96.0], [-100.0, -96.0], [-100.0, -16.0]],
    )
    yield case(
        "hopeless",
        "|h| of 9984 at beta 1 in both directions: finite value and gradient",
        [[-9984.0, -1.0], [-1.0, -9984.0], [-1.0, -1.0], [-1.0, -1.0]],
        beta=1.0,
    )
    yield case(
        "long-responses",
        "sums over thousands of tokens, whose differences are small",
        [[-8192.0, -8128.0], [-8256.0, -8192.0], [-8192.0, -8192.0], [-8192.0, -8128.0]],
        "C3",
    )
    for i in range(3):
        yield case(f"random-{i}", "random", columns(6))


def orpo(draw: Draw) -> Iterator[Case]:
    def case(
        name: str,
        story: str,
        chosen: list[float],
        rejected: list[float],
        *cites: str,
        values_only: bool = False,
        **options: float,
    ) -> Case:
        inputs = dict(zip(MEAN_INPUTS, (chosen, rejected), strict=True))
        return Case(
            "orpo", name, story, inputs, {"lam": 0.1} | options, cites, values_only=values_only
        )

    yield case("ordinary", "the anchor: mean log-probs -0.5 and -1.5", [-0.5], [-1.5], "D8")
    yield case("swapped", "the rejected response likelier", [-1.5, -3.0], [-0.5, -0.25])
    yield case("equal", "equal log-probs: odds ratio 1", [-0.75, -9.0], [-0.75, -9.0])
    yield case("lam", "another weight, on the odds alone", [-0.5, -2.0], [-1.5, -0.5], lam=1.0)
    yield case(
        "half",
        "either side of p = 1/2, where implementations change branches",
        [-0.6875, -0.6953125, -0.69140625],
        [-0.6953125, -0.6875, -0.69140625],
    )
    for power in (10, 20, 24, 30, 40, 60):
        a = -(2.0**-power)
        yield case(
            f"certain-chosen-{power}",
            f"chosen at log p = -2^-{power}: log(1 - p) keeps its digits, the gradient is no NaN",
            [a, 1.5 * a],
            [-1.0, -4.0],
            "D1",
            "D2",
            "D9",
        )
        yield case(
            f"certain-rejected-{power}",
            f"rejected at log p = -2^-{power}",
            [-1.0, -4.0],
            [a, 1.5 * a],
            "D1",
            "D2",
            "D9",
        )
    tiny = -(2.0**-30)
    yield case(
        "both-certain", "both near p = 1: the odds still differ", [tiny, tiny], [2 * tiny, tiny / 4]
    )
    yield case("hopeless", "log p = -9984 on either side", [-9984.0, -1.0], [-1.0, -9984.0], "D1")
    yield case("both-hopeless", "on both", [-9984.0, -104.0], [-9920.0, -120.0], "D1")
    yield case(
        "extremes",
        "p near 1 against p near 0",
        [-(2.0**-40), -9984.0],
        [-9984.0, -(2.0**-40)],
        "D2",
    )
    yield case(
        "p-is-1", "chosen at p = 1: the loss is 0, no inf - inf", [0.0], [-1.0], values_only=True
    )
    for i in range(3):
        yield case(f"random-{i}", "random", draw.row(6, -4, 0), draw.row(6, -4, 0))


def simpo(draw: Draw) -> Iterator[Case]:
    def case(
        name: str,
        story: str,
        chosen: list[float],
        rejected: list[float],
        **options: float,
    ) -> Case:
        inputs = dict(zip(MEAN_INPUTS, (chosen, rejected), strict=True))
        return Case("simpo", name, story, inputs, {"beta": 2.0, "gamma": 1.0} | options)

    def means(n: int) -> list[float]:
        return draw.row(n, -4, 0)

    yield case("ordinary", "the anchor: mean log-probs -0.5 and -1.5", [-0.5], [-1.5])
    yield case("swapped", "the rejected response likelier", [-1.5, -3.0], [-0.5, -0.25])
    yield case(
        "at-the-target",
        "rewards that are the margin apart: ln 2, and gradients of -1 and 1",
        [-0.25, -2.0],
        [-0.75, -2.5],
    )
    yield case("no-margin", "a margin of 0 is none", means(4), means(4), gamma=0.0)
    yield case("gamma", "the margin is not multiplied by beta", means(4), means(4), gamma=1.6)
    yield case("beta", "another beta: once, and inside", means(4), means(4), beta=10.0, gamma=3.0)
    yield case(
        "small-beta",
        "beta below the margin: gamma / beta is large, and gamma is not",
        means(4),
        means(4),
        beta=0.1,
        gamma=0.5,
    )
    yield case(
        "shifted",
        "only the difference counts, not how likely both are",
        [-0.5, -16.5, -96.5],
        [-1.5, -17.5, -97.5],
    )
    yield case(
        "wrong",
        "161 short of the target: σ underflows in float32, and its logarithm does not",
        [-80.0, -96.0],
        [0.0, -16.0],
    )
    yield case(
        "certain",
        "79 and 15 beyond the target: what is left of the loss is exponentially small",
        [-8.0, -0.5],
        [-48.0, -8.5],
    )
    yield case(
        "hopeless",
        "mean log-probs 9983 apart, both ways: finite value and gradient",
        [-9984.0, -1.0],
        [-1.0, -9984.0],
    )
    yield case("sure", "log p = 0 on either side is a log-prob", [0.0, -1.0], [-1.0, 0.0])
    for i in range(3):
        yield case(f"random-{i}", "random", means(6), means(6))
