"""Per-token cases: sft, the KL estimators, and the mean of an optimizer step."""

from __future__ import annotations

from collections.abc import Iterator

from .base import LONG, NAN, Case, Draw, mask_of, under

SMALLEST = -(2.0**-40)  # log p of a token with p = 1 - 1e-12


def cases(draw: Draw) -> Iterator[Case]:
    yield from sft(draw)
    yield from kl(draw)
    yield from reduce(draw)


def sft(draw: Draw) -> Iterator[Case]:
    def case(name: str, story: str, mask: list[list[bool]], logps: object, *cites: str) -> Case:
        return Case("sft", name, story, {"logps": logps, "mask": mask}, cites=cites)

    full = mask_of("1111", "1111", "1111")
    yield case("ordinary", "every position is a response token", full, draw.table(3, 4))
    ragged = mask_of("1111", "1100", "1000")
    yield case("ragged", "rows of 4, 2 and 1 tokens", ragged, draw.table(3, 4), "A1")
    yield case(
        "padding-nan",
        "NaN under the mask reaches neither value nor gradient",
        ragged,
        under(ragged, draw.table(3, 4)),
    )
    yield case(
        "padding-inf",
        "-inf under the mask, as a banned token has it, times 0 would be NaN",
        ragged,
        under(ragged, draw.table(3, 4), float("-inf")),
    )
    yield case(
        "prompt-first",
        "the mask begins at the first response token, not one later or earlier",
        mask_of("00111", "00001", "01111"),
        draw.table(3, 5),
        "B1",
        "B3",
    )
    yield case(
        "holes",
        "a tool's output in mid-response is not trained",
        mask_of("110011", "101010"),
        draw.table(2, 6),
        "G6",
    )
    one = mask_of("1")
    yield case("one-token", "a row of one token", one, [[draw.number()]])
    yield case(
        "masked-row",
        "a row without a response token",
        mask_of("111", "000"),
        draw.table(2, 3),
        "A16",
    )
    yield case("all-masked", "nothing to learn: zeros, no 0/0", mask_of("00"), [[NAN, NAN]], "A16")
    yield case("certain", "p = 1: a loss of 0", mask_of("11"), [[0.0, SMALLEST]])
    yield case(
        "hopeless", "p = e^-9984 is 0 in any dtype", mask_of("11"), [[-9984.0, -1e4 // 64 * 64]]
    )
    for i in range(3):
        mask = draw.lengths(4, 7)
        yield case(
            f"random-{i}", "random rows, NaN at the padding", mask, under(mask, draw.table(4, 7))
        )
    yield Case(
        "sft",
        "long",
        "a response of 4096 tokens",
        {"logps": draw.table(1, LONG), "mask": [[True] * LONG]},
        long=True,
    )


def kl(draw: Draw) -> Iterator[Case]:
    def case(name: str, story: str, logps: object, ref: object, kind: str, *cites: str) -> Case:
        inputs = {"logps": logps, "ref_logps": ref}
        return Case("kl", f"{kind}-{name}", story, inputs, {"kind": kind}, cites)

    for kind in ("k1", "k2", "k3"):
        yield case(
            "ordinary",
            "signs and factors: π's samples, so d = log π - log ref",
            draw.table(2, 3),
            draw.table(2, 3),
            kind,
            "H4",
            "H5",
        )
        same = draw.table(2, 2)
        yield case("equal", "π = ref: 0, and k1's gradient is still 1", same, same, kind)
        yield case(
            "near",
            "d of 2^-20 beside log-probs as small: e^-d - 1 + d as written has no digits left",
            [[-(2.0**-20), -(2.0**-19)]],
            [[-(2.0**-19), -(2.0**-20)]],
            kind,
        )
        yield case(
            "far",
            "|d| up to 80, where a clamp at 10 or 20 would show",
            [[-1.0, -81.0, -16.0]],
            [[-81.0, -1.0, -1.0]],
            kind,
            "H6",
        )
        yield case("random", "random", draw.table(3, 4, -8.0), draw.table(3, 4, -8.0), kind)


def reduce(draw: Draw) -> Iterator[Case]:
    def case(
        name: str,
        story: str,
        mask: list[list[bool]],
        losses: object,
        cut: list[int],
        unit: str = "token",
        *cites: str,
        long: bool = False,
    ) -> Case:
        options = {"micro_batches": cut, "unit": unit}
        inputs = {"losses": losses, "mask": mask}
        return Case("reduce", name, story, inputs, options, cites, long=long)

    two = mask_of("1111", "1000")
    fours = [[4.0, 4.0, 4.0, 4.0], [1.0, NAN, NAN, NAN]]
    yield case(
        "mean-of-means",
        "token losses 4 4 4 4 | 1: 17/5, not the mean of the two means",
        two,
        fours,
        [1, 1],
        "token",
        "A1",
    )
    yield case("one-batch", "the same rows in one piece: the same number", two, fours, [2])
    yield case(
        "rows", "mean of each row's mean: 5/2 for the same rows", two, fours, [1, 1], "row", "D7"
    )
    yield case("rows-one-batch", "and in one piece", two, fours, [2], "row", "D7")
    eight = draw.lengths(8, 5)
    padded = under(eight, draw.table(8, 5, 0.0, 4.0))
    for cut in ([8], [4, 4], [5, 3], [1, 7], [2, 2, 2, 2], [1] * 8):
        name = "-".join(map(str, cut))
        yield case(
            f"cut-{name}", f"8 rows as {name}: one number", eight, padded, cut, "token", "A1", "A7"
        )
        yield case(f"rows-cut-{name}", f"8 rows as {name}", eight, padded, cut, "row", "A7")
    last = mask_of("111", "110", "111", "100", "111")
    yield case(
        "short-window",
        "the last window of an epoch has fewer micro-batches than the others",
        last,
        draw.table(5, 3, 0.0, 4.0),
        [4, 1],
        "token",
        "A7",
    )
    empty = mask_of("110", "000", "100")
    yield case(
        "empty-micro-batch",
        "a micro-batch without a response token adds nothing, and no 0/0",
        empty,
        under(empty, draw.table(3, 3, 0.0, 4.0)),
        [1, 1, 1],
        "token",
        "A16",
    )
    yield case(
        "rows-empty",
        "a row without a token is a 0 among the rows",
        empty,
        under(empty, draw.table(3, 3, 0.0, 4.0)),
        [2, 1],
        "row",
        "A16",
    )
    yield case(
        "all-masked", "no token in the whole step: 0", mask_of("00", "00"), [[NAN] * 2] * 2, [1, 1]
    )
    yield case(
        "cancelling",
        "losses of both signs (PPO's) that nearly cancel",
        mask_of("1111", "1110"),
        [[100.0, -99.5, 0.5, -1.0], [64.0, -63.0, -0.75, NAN]],
        [1, 1],
    )
    long = [[True] * (LONG // 2)] * 2
    yield case(
        "long",
        "4096 tokens in two micro-batches",
        long,
        draw.table(2, LONG // 2, 0.0, 4.0),
        [1, 1],
        long=True,
    )
