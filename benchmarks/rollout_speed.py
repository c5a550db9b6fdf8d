"""Tokens a second of rollout/sample.py beside Hugging Face's `generate`, at equal settings.

    python -m benchmarks.rollout_speed benchmarks/results/rollout_speed.json --model DIR --data DIR

Both get the same prompts in one batch, draw from the whole vocabulary at temperature 1, and take
turns (A B B A) in one process. Responses are of equal length (they run to --max_new_tokens) or
ragged (a line break ends them). What is counted is the tokens of the responses, without padding, of
all rounds over their seconds: each side draws responses of its own. Ours also keeps each token's
log-probability, which `generate` is not asked for. The machine does nothing else meanwhile, or the
figures are of something else.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel

from benchmarks.record import origin
from benchmarks.versus.summary import RESAMPLES
from data.encode import encode_records
from data.records import load_data
from models.load import load_causal_lm, load_tokenizer
from rollout.sample import Sampling, sample
from runtime.files import write_json

LINE_BREAK = "\n"
Prompts = Sequence[Sequence[int]]


def ours(model: PreTrainedModel, prompts: Prompts, sampling: Sampling, seed: int) -> list[int]:
    """Tokens of each response."""
    generator = torch.Generator().manual_seed(seed)
    found = sample(model, prompts, sampling, generator, max_tokens=10**9)
    return [len(response.tokens) for response in found]


def theirs(model: Any, prompts: Prompts, sampling: Sampling, seed: int) -> list[int]:
    """Tokens of each response."""
    torch.manual_seed(seed)
    width = max(map(len, prompts))
    stops = list(sampling.stop_ids)
    ids = torch.tensor([[stops[0]] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    settings = GenerationConfig(
        do_sample=True,
        temperature=sampling.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=stops,
        pad_token_id=stops[0],
        use_cache=True,
    )
    with torch.no_grad():
        output = model.generate(ids, attention_mask=mask, generation_config=settings)
    return [length_of(row, stops) for row in output[:, width:].tolist()]


def length_of(tokens: Sequence[int], stops: Sequence[int]) -> int:
    """Of a padded response, up to its first stop token and with it."""
    ends = [i for i, token in enumerate(tokens) if token in stops]
    return ends[0] + 1 if ends else len(tokens)


SIDES: dict[str, Callable[[PreTrainedModel, Prompts, Sampling, int], list[int]]] = {
    "ours": ours,
    "generate": theirs,
}


def measure(
    model: PreTrainedModel, prompts: Prompts, sampling: Sampling, rounds: int
) -> dict[str, Any]:
    """Tokens a second of both sides over all rounds, after one of each that does not count."""
    runs: list[dict[str, dict[str, Any]]] = []
    for number in range(-1, rounds):
        taken: dict[str, dict[str, Any]] = {}
        for side in sorted(SIDES, reverse=number % 2 == 0):
            began = time.perf_counter()
            lengths = SIDES[side](model, prompts, sampling, 1000 + number)
            seconds = time.perf_counter() - began
            taken[side] = {"tokens": sum(lengths), "seconds": seconds, "longest": max(lengths)}
        runs.append(taken)
    runs = runs[1:]
    rates = {side: rate([run[side] for run in runs]) for side in SIDES}
    drawn = np.random.default_rng(0).integers(len(runs), size=(RESAMPLES, len(runs)))
    ratios = [
        rate([runs[i]["ours"] for i in chosen]) / rate([runs[i]["generate"] for i in chosen])
        for chosen in drawn
    ]
    return {
        "prompts": len(prompts),
        "max_new_tokens": sampling.max_new_tokens,
        "tokens a second": rates,
        "mean length": {
            side: sum(run[side]["tokens"] for run in runs) / len(runs) / len(prompts)
            for side in SIDES
        },
        "ours / generate": rates["ours"] / rates["generate"],
        "95 %": np.percentile(ratios, [2.5, 97.5]).tolist(),  # bootstrap over the rounds
        "rounds": runs,
    }


def rate(runs: Sequence[Mapping[str, float]]) -> float:
    """Tokens a second of several runs together."""
    return sum(run["tokens"] for run in runs) / sum(run["seconds"] for run in runs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument(
        "--batches", default="32,64", help="prompts of a batch; default %(default)s"
    )
    given = parser.parse_args()
    tokenizer = load_tokenizer(given.model)
    model = load_causal_lm(given.model, dtype="float32")
    records, _, _ = load_data(given.data, pairs=True)
    sizes = [int(size) for size in given.batches.split(",")]
    encoded = encode_records(list(islice(records, max(sizes))), tokenizer)
    prompts = [row.prompt for row in encoded.rows]
    end = tokenizer.eos_token_id
    (line_break,) = tokenizer(LINE_BREAK, add_special_tokens=False)["input_ids"]
    found = {
        f"{size} prompts, {name}": measure(
            model, prompts[:size], Sampling(given.max_new_tokens, stops), given.rounds
        )
        for size in sizes
        for name, stops in (("ragged", (line_break,)), ("equal", (end,)))
    }
    write_json(given.results, {**origin("benchmarks.rollout_speed"), "found": found})
    for name, cell in found.items():
        print(name, cell["ours / generate"], cell["95 %"])


if __name__ == "__main__":
    main()
