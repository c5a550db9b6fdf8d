"""Before PPO's gradient: GAE and whitening."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .base import LONG, NAN, Case, Draw, bf16, mask_of, under

WIDE = ("float64", "float32")


def cases(draw: Draw) -> Iterator[Case]:
    yield from gae(draw)
    yield from whiten(draw)


def gae(draw: Draw) -> Iterator[Case]:
    def case(
        name: str,
        story: str,
        mask: list[list[bool]],
        rewards: Any,
        values: Any,
        *cites: str,
        last: list[float] | None = None,
        dtypes: tuple[str, ...] = (*WIDE, "bfloat16"),
        long: bool = False,
        **options: float,
    ) -> Case:
        inputs: dict[str, Any] = {"rewards": rewards, "values": values, "mask": mask}
        if last is not None:
            inputs["last_values"] = last
        return Case("gae", name, story, inputs, options, cites, dtypes, long=long)

    def signed(b: int, t: int) -> list[list[float]]:
        return draw.table(b, t, -1, 1)

    three = mask_of("111")
    r, v = [[-0.0625, -0.125, 1.0]], [[0.125, 0.25, 0.375]]
    yield case("ordinary", "a reward at the end, λ 0.95 and γ 1", three, r, v, "G13")
    yield case("gamma", "γ in δ and in the decay", three, r, v, gamma=0.9)
    yield case("lam", "another λ", three, r, v, lam=0.5)
    yield case("lam-0", "λ 0: one-step errors", three, r, v, lam=0.0, gamma=0.99)
    yield case("lam-1", "λ 1: reward to go minus value", three, r, v, lam=1.0)
    yield case("gamma-0", "γ 0: the reward minus the value", three, r, v, gamma=0.0)
    cut = [0.5]
    yield case(
        "bootstrap", "a row cut at its length: V of what follows", three, r, v, "G5", last=cut
    )
    yield case("bootstrap-gamma", "γ on it too", three, r, v, "G5", last=cut, gamma=0.9, lam=0.8)
    ragged = mask_of("1110", "1000", "1111")
    yield case(
        "padding-values",
        "values of 5 at the padding bootstrap into no token",
        mask_of("11100"),
        [[0.0, 0.0, 1.0, 5.0, 5.0]],
        [[0.125, 0.25, 0.375, 5.0, 5.0]],
        "G3",
    )
    yield case(
        "padding-nan",
        "NaN at the padding",
        ragged,
        under(ragged, signed(3, 4)),
        under(ragged, signed(3, 4)),
        "G3",
    )
    yield case(
        "bootstrap-ragged",
        "each row continues after its own last token",
        ragged,
        under(ragged, signed(3, 4)),
        under(ragged, signed(3, 4)),
        "G5",
        last=[0.5, -0.25, 1.0],
        gamma=0.9,
    )
    yield case(
        "holes",
        "the recursion steps over a tool's output",
        mask_of("110011", "011101"),
        signed(2, 6),
        signed(2, 6),
        "G6",
        gamma=0.9,
    )
    yield case(
        "prompt-first",
        "responses that begin late",
        mask_of("0011", "0111"),
        signed(2, 4),
        signed(2, 4),
        "G4",
    )
    yield case("one-token", "one token: r - V", mask_of("1"), [[1.0]], [[0.25]], "G1")
    yield case(
        "one-token-rows", "rows of one token", mask_of("10", "01"), signed(2, 2), signed(2, 2), "G1"
    )
    yield case(
        "all-masked",
        "a row without tokens: zeros",
        mask_of("00", "11"),
        [[NAN] * 2, [1.0, 0.5]],
        [[NAN] * 2, [0.5, 1.0]],
        "A16",
        last=[0.5, 0.5],
    )
    yield case(
        "large",
        "rewards of 9984 with values as large",
        three,
        [[9984.0, -9984.0, 64.0]],
        [[9984.0, 9920.0, -9984.0]],
    )
    yield case(
        "right-critic", "values that predict the return: 0", three, [[0.0, 0.0, 1.0]], [[1.0] * 3]
    )
    for i, (gamma, lam) in enumerate(((1.0, 0.95), (0.99, 0.95), (0.9, 0.5), (1.0, 1.0))):
        mask = draw.lengths(3, 8)
        yield case(f"random-{i}", "random", mask, signed(3, 8), signed(3, 8), gamma=gamma, lam=lam)
    yield case(
        "long",
        "4096 tokens, a reward at the end",
        [[True] * LONG],
        [[0.0] * (LONG - 1) + [1.0]],
        signed(1, LONG),
        dtypes=WIDE,
        long=True,
    )
    yield case(
        "medium",
        "512 tokens with λ 1 and a reward on each: nothing decays",
        [[True] * 512],
        signed(1, 512),
        signed(1, 512),
        lam=1.0,
        dtypes=WIDE,
        long=True,
    )


def whiten(draw: Draw) -> Iterator[Case]:
    def case(
        name: str,
        story: str,
        mask: list[list[bool]],
        x: Any,
        *cites: str,
        dtypes: tuple[str, ...] = (*WIDE, "bfloat16"),
        long: bool = False,
        **options: bool,
    ) -> Case:
        return Case(
            "whiten", name, story, {"x": x, "mask": mask}, options, cites, dtypes, long=long
        )

    four, counting = mask_of("1111"), [[1.0, 2.0, 3.0, 4.0]]
    yield case("ordinary", "1 2 3 4: mean 0, population variance 1", four, counting, "G7", "G9")
    yield case(
        "keep-mean", "the same with its mean put back", four, counting, "G7", "G9", shift_mean=False
    )
    ragged = mask_of("1110", "1100", "0000")
    yield case(
        "padding",
        "padding of 64 in neither moment, and 0 afterwards",
        ragged,
        under(ragged, draw.table(3, 4, -1, 1), 64.0),
        "G12",
        "G15",
    )
    yield case(
        "padding-keep-mean",
        "and 0 where the mean is put back",
        ragged,
        under(ragged, draw.table(3, 4, 1, 2), 64.0),
        "G12",
        "G15",
        shift_mean=False,
    )
    yield case(
        "padding-nan", "NaN at the padding", ragged, under(ragged, draw.table(3, 4, -1, 1)), "G12"
    )
    yield case(
        "whole-batch",
        "moments of the whole batch: a better row stays better",
        mask_of("111", "111"),
        [[1.0, 1.25, 1.5], [-1.0, -1.25, -1.5]],
        "G10",
        "G11",
    )
    yield case(
        "square", "as many rows as columns", mask_of("111", "111", "110"), draw.table(3, 3), "G11"
    )
    yield case("constant", "no variance: zeros, not 0/0", mask_of("111"), [[0.5] * 3], "G14")
    yield case(
        "constant-keep-mean", "or the mean", mask_of("111"), [[0.5] * 3], "G14", shift_mean=False
    )
    yield case(
        "small",
        "a deviation of 1e-4, where the place of the 1e-8 shows",
        four,
        [[2.0**-14, -(2.0**-14), 2.0**-13, -(2.0**-13)]],
        dtypes=WIDE,
    )
    yield case("one-token", "one token is its own mean", mask_of("1000"), draw.table(1, 4), "G14")
    yield case("all-masked", "nothing to whiten", mask_of("00"), [[NAN, NAN]], "A16")
    yield case("two-values", "plus and minus one", mask_of("1111"), [[1.0, -1.0, 1.0, -1.0]], "G9")
    offset = 2.0**20
    yield case(
        "offset",
        "a mean of 2^20: E[x²] - E[x]² has no digits left",
        mask_of("1111", "1110"),
        [[offset + k for k in (0, 1, 3, 7)], [offset + k for k in (2, 5, 6, 0)]],
        dtypes=WIDE,
    )
    yield case(
        "large", "numbers of 9984", mask_of("1111"), [[9984.0, -9984.0, 64.0, -4992.0]], "G9"
    )
    yield case(
        "outlier",
        "one score of 9984 among small ones",
        mask_of("11111"),
        [[0.5, -0.25, 1.0, 9984.0, 0.75]],
    )
    for i in range(4):
        mask = draw.lengths(3, 6)
        yield case(
            f"random-{i}",
            "random",
            mask,
            under(mask, draw.table(3, 6, -2, 2)),
            shift_mean=i % 2 == 0,
        )
    yield case(
        "long",
        "4096 tokens, a mean of 8",
        [[True] * LONG],
        [[bf16(8 + a) for a in row] for row in draw.table(1, LONG, -4, 4)],
        dtypes=WIDE,
        long=True,
    )
