"""Token log-probs from hidden states and an output embedding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .base import LONG, Case, Draw


def cases(draw: Draw) -> Iterator[Case]:
    def case(
        name: str,
        story: str,
        hidden: list[list[float]],
        weight: list[list[float]],
        targets: list[int],
        *cites: str,
        bias: list[float] | None = None,
        dtypes: tuple[str, ...] = ("float64", "float32", "bfloat16"),
        long: bool = False,
        **options: float,
    ) -> Case:
        inputs: dict[str, Any] = {"hidden": hidden, "weight": weight, "targets": targets}
        if bias is not None:
            inputs["bias"] = bias
        return Case("logprobs", name, story, inputs, options, cites, dtypes, long=long)

    def drawn(name: str, story: str, n: int, d: int, v: int, *cites: str, **more: Any) -> Case:
        hidden, weight = draw.table(n, d, -1, 1), draw.table(v, d, -1, 1)
        return case(name, story, hidden, weight, draw.ids(n, v), *cites, **more)

    unit = [[1.0, 0.0], [0.0, 1.0]]
    yield case("uniform", "all logits 0: -log V", [[0.0, 0.0]] * 2, draw.table(5, 2, -1, 1), [0, 4])
    yield case(
        "ordinary", "logits 2 and 0: the likely and the unlikely", [[2.0, 0.0]] * 2, unit, [0, 1]
    )
    yield drawn("batch", "every row its own target", 6, 4, 7, "B3")
    yield drawn("bias", "a bias", 5, 3, 6, bias=draw.row(6, -1, 1))
    yield drawn(
        "cool", "temperature 0.5: on the logits, before the softmax", 5, 3, 6, "F2", temperature=0.5
    )
    yield drawn("warm", "temperature 2", 5, 3, 6, "F2", temperature=2.0)
    yield drawn(
        "cool-bias",
        "the bias is divided as well",
        5,
        3,
        6,
        "F2",
        bias=draw.row(6, -1, 1),
        temperature=0.7,
    )
    yield drawn("one-token", "one token", 1, 3, 4)
    yield drawn("one-word", "a vocabulary of one word: log 1 = 0", 3, 2, 1)
    yield drawn("wide", "50 words, 8 dimensions", 4, 8, 50)
    yield case(
        "certain",
        "the target 9984 above: log p = 0, a gradient of 0, exp(9984) nowhere",
        [[9984.0, 0.0], [0.0, 9984.0]],
        unit,
        [0, 1],
    )
    yield case(
        "hopeless",
        "the target 9984 below: log p = -9984, not log 0",
        [[9984.0, 0.0], [0.0, 9984.0]],
        unit,
        [1, 0],
    )
    yield case(
        "negative",
        "all logits at -9984: exp gives 0/0 unless the largest is taken off",
        [[-9984.0, -9984.0]],
        unit,
        [1],
    )
    yield case("positive", "all logits at 9984: exp gives inf/inf", [[9984.0, 9984.0]], unit, [1])
    yield case(
        "nearly-certain",
        "p = 1 - e^-30 and 1 - e^-16",
        [[30.0, 0.0], [16.0, 0.0]],
        unit,
        [0, 0],
        "C18",
    )
    yield case("unlikely", "p = e^-120: log(softmax) is -inf in float32", [[120.0, 0.0]], unit, [1])
    for i in range(3):
        yield drawn(f"random-{i}", "random, logits up to some tens", 6, 4, 9, temperature=0.25)
    yield case(
        "long",
        "4099 tokens: more rows than a chunk holds, and no multiple of it",
        draw.table(LONG + 3, 1, -2, 2),
        draw.table(3, 1, -2, 2),
        draw.ids(LONG + 3, 3),
        dtypes=("float64", "float32"),
        long=True,
    )
