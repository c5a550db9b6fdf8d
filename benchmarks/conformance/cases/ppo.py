"""PPO's two clipped losses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .base import LONG, Case, Draw, bf16, mask_of, under

CLEAR = (0.0, 0.05), (0.5, 1.0)  # steps within the clip and beyond it, told apart in any dtype


def cases(draw: Draw) -> Iterator[Case]:
    yield from policy(draw)
    yield from value(draw)


def near(draw: Draw, table: list[list[float]], *steps: tuple[float, float]) -> list[list[float]]:
    """Another table, every number off by one of the ranges `steps`, up or down."""

    def move(x: float) -> float:
        low, high = steps[draw.ids(1, len(steps))[0]]
        return bf16(x + draw.number(low, high) * (1 if draw.rng.random() < 0.5 else -1))

    return [[move(x) for x in row] for row in table]


def policy(draw: Draw) -> Iterator[Case]:
    def case(
        name: str,
        story: str,
        mask: list[list[bool]],
        logps: Any,
        old: Any,
        advantages: Any,
        *cites: str,
        dtypes: tuple[str, ...] = ("float64", "float32", "bfloat16"),
        long: bool = False,
        far: bool = False,
        **options: float,
    ) -> Case:
        inputs = {"logps": logps, "old_logps": old, "advantages": advantages, "mask": mask}
        return Case("policy", name, story, inputs, options, cites, dtypes, long=long, far=far)

    four = mask_of("1111")
    up, down = [[-0.5] * 4], [[-1.5] * 4]
    signs = [[1.0, -1.0, 2.5, -0.25]]
    yield case("rising", "ratio e: a gain is clipped, a loss is not", four, up, down, signs, "H1")
    yield case("falling", "ratio 1/e: the other way round", four, down, up, signs)
    same = draw.table(2, 4)
    ones = mask_of("1111", "1100")
    yield case(
        "first-step",
        "old = new: value -A, gradient -A",
        ones,
        same,
        same,
        draw.table(2, 4, -2, 2),
        "H13",
    )
    yield case(
        "inside",
        "ratios within the clip",
        four,
        [[-1.0] * 4],
        [[-1.0625, -0.9375, -1.09375, -0.90625]],
        signs,
    )
    yield case("clip", "another clip", four, up, [[-0.75] * 4], signs, clip=0.5)
    yield case(
        "dual",
        "A = -1 at a ratio of e^3: no floor at 3",
        mask_of("1"),
        [[-1.0]],
        [[-4.0]],
        [[-1.0]],
        "H1",
    )
    ragged = mask_of("1110", "0100", "0000")
    yield case(
        "padding-nan",
        "NaN under the mask, in all three",
        ragged,
        under(ragged, draw.table(3, 4, -2, -1)),
        under(ragged, draw.table(3, 4, -3, -2)),
        under(ragged, draw.table(3, 4, -2, -1)),
        "F10",
    )
    inf = float("inf")
    yield case(
        "padding-overflow",
        "padding whose ratio is e^1e4: 0 x inf is NaN in the gradient",
        mask_of("110"),
        [[-1.0, -2.0, 9984.0]],
        [[-2.0, -1.0, -9984.0]],
        [[1.0, 1.0, inf]],
    )
    yield case("one-token", "one token", mask_of("1"), [[-0.5]], [[-1.25]], [[0.5]], "H13")
    yield case(
        "all-masked",
        "a row without tokens",
        mask_of("00"),
        [[-1.0, -2.0]],
        [[-3.0, -1.0]],
        [[1.0, 1.0]],
        "A16",
    )
    yield case(
        "overflow-gain",
        "a log-ratio of 9983 at A > 0: the clipped loss and no gradient, not 0 x inf",
        mask_of("11"),
        [[-1.0, -1.0]],
        [[-9984.0, -128.0]],
        [[1.0, 0.5]],
        far=True,
    )
    yield case(
        "vanished",
        "a log-ratio of -9983: ratio 0, clipped where A < 0",
        mask_of("11"),
        [[-9984.0, -9984.0]],
        [[-1.0, -1.0]],
        [[1.0, -1.0]],
    )
    yield case(
        "large-ratio",
        "ratio e^60 at A < 0 is not clipped, and is finite in every dtype",
        mask_of("11"),
        [[-4.0, -4.0]],
        [[-64.0, -8.0]],
        [[-1.0, -2.0]],
        "H6",
        far=True,
    )
    yield case(
        "large-advantages",
        "advantages of 9984, as unwhitened rewards give them",
        mask_of("11"),
        [[-1.0, -2.0]],
        [[-1.0625, -1.9375]],
        [[9984.0, -9984.0]],
    )
    for i in range(4):
        mask, old = draw.lengths(3, 6), draw.table(3, 6)
        yield case(
            f"random-{i}",
            "random, some clipped",
            mask,
            near(draw, old, *(CLEAR if i else [(0.0, 0.75)])),
            old,
            near(draw, [[0.0] * 6] * 3, (0.25, 2.0)),
        )
    old = draw.table(1, LONG)
    yield case(
        "long",
        "a response of 4096 tokens",
        [[True] * LONG],
        near(draw, old, (0.0, 0.5)),
        old,
        draw.table(1, LONG, -2, 2),
        dtypes=("float64", "float32"),
        long=True,
    )


def value(draw: Draw) -> Iterator[Case]:
    def case(
        name: str,
        story: str,
        mask: list[list[bool]],
        values: Any,
        old: Any,
        returns: Any,
        *cites: str,
        values_only: bool = False,
        dtypes: tuple[str, ...] = ("float64", "float32", "bfloat16"),
        long: bool = False,
        **options: float,
    ) -> Case:
        inputs = {"values": values, "old_values": old, "returns": returns, "mask": mask}
        return Case("value", name, story, inputs, options, cites, dtypes, values_only, long)

    yield case(
        "ordinary",
        "V 1, old 0, R 3/4: the clipped value, 1/5, is further off, so 0.15125 and no gradient",
        mask_of("1"),
        [[1.0]],
        [[0.0]],
        [[0.75]],
        "H2",
    )
    five = mask_of("11111")
    yield case(
        "branches",
        "inside; clipped up and down with the clipped error larger (no gradient) and smaller",
        five,
        [[0.125, 1.0, -1.0, 1.0, -1.0]],
        [[0.0, 0.0, 0.0, 0.0, 0.0]],
        [[1.0, 3.0, -3.0, -1.0, 1.0]],
        "H2",
        "H3",
    )
    same = draw.table(2, 3, -2, 2)
    yield case(
        "first-step",
        "old = new: half the squared error",
        mask_of("111", "110"),
        same,
        same,
        draw.table(2, 3, -2, 2),
        "H2",
    )
    yield case(
        "clip",
        "another clip",
        mask_of("111"),
        [[1.0, -1.0, 0.25]],
        [[0.0] * 3],
        [[2.0, 1.0, 3.0]],
        clip=0.5,
    )
    yield case(
        "on-the-edge",
        "V at old + clip exactly: a value that both branches agree on",
        mask_of("11"),
        [[0.5, -0.5]],
        [[0.0, 0.0]],
        [[2.0, 1.0]],
        values_only=True,
        clip=0.5,
    )
    ragged = mask_of("1110", "0100", "0000")
    yield case(
        "padding-nan",
        "NaN under the mask, in all three",
        ragged,
        under(ragged, draw.table(3, 4, 1, 2)),
        under(ragged, draw.table(3, 4, -2, 0)),
        under(ragged, draw.table(3, 4, 3, 4)),
        "I2",
    )
    yield case(
        "padding-large",
        "1e30 under the mask, whose square is inf",
        mask_of("10"),
        [[1.0, bf16(1e30)]],
        [[0.25, 0.0]],
        [[3.0, 0.0]],
    )
    yield case("one-token", "one token", mask_of("1"), [[1.5]], [[0.5]], [[-1.5]])
    yield case(
        "all-masked",
        "a row without tokens",
        mask_of("00"),
        [[1.0, 2.0]],
        [[0.0] * 2],
        [[3.0] * 2],
        "A16",
    )
    yield case(
        "exact",
        "V = R = old: 0 and a gradient of 0",
        mask_of("11"),
        [[1.0, -2.0]],
        [[1.0, -2.0]],
        [[1.0, -2.0]],
    )
    yield case(
        "large",
        "values of 9984 and a return beyond the clip",
        mask_of("11"),
        [[9984.0, 9984.0]],
        [[-9984.0, 64.0]],
        [[4992.0, -4992.0]],
    )
    for i in range(4):
        mask, old = draw.lengths(3, 6), draw.table(3, 6, -2, 2)
        yield case(
            f"random-{i}",
            "random, some clipped",
            mask,
            near(draw, old, *(CLEAR if i else [(0.0, 0.75)])),
            old,
            near(draw, old, *([(2.0, 3.0)] if i else [(0.0, 3.0)])),
        )
    old = draw.table(1, LONG, -2, 2)
    yield case(
        "long",
        "a response of 4096 tokens",
        [[True] * LONG],
        near(draw, old, (0.0, 0.5)),
        old,
        draw.table(1, LONG, -3, 3),
        dtypes=("float64", "float32"),
        long=True,
    )
