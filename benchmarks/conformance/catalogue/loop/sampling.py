"""What is sampled, with which log-prob, and where a response ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.conformance.catalogue.loop.base import Seen, in_the_loop
from benchmarks.conformance.catalogue.loop.rollouts import PROMPTS, logps_by_hand
from benchmarks.conformance.catalogue.loop.world import END, tiny
from data.encode import Row
from rollout import sample
from rollout.sample import Sampled, Sampling

STOP = 9  # beside the end token


def four_responses(
    *, top_k: int = 0, temperature: float = 1.0, stops: Any = (END, STOP)
) -> list[Seen]:
    """Responses to four prompts of unequal lengths, by a model whose own generation_config asks
    for something else."""
    model = tiny()
    model.generation_config.top_k = 1
    model.generation_config.top_p = 0.1
    sampling = Sampling(8, stops, temperature, top_k)
    found = sample.sample(model, PROMPTS, sampling, torch.Generator().manual_seed(5))
    rows = [
        Row(i, p, [s.tokens], [True], [1])
        for i, (p, s) in enumerate(zip(PROMPTS, found, strict=True))
    ]
    by_hand = [logps_by_hand(model, row, temperature) for row in rows]
    kl = [sum(s.logps) - sum(logps) for s, logps in zip(found, by_hand, strict=True)]
    lengths = [_length(s.tokens, stops) for s in found]
    return [
        Seen("log-prob of each response minus the model's own", [0.0] * 4, kl),
        Seen("lengths, up to the first stop token", lengths, [len(s.tokens) for s in found]),
        Seen(
            "ended by a stop token",
            [s.tokens[n - 1] in stops for s, n in zip(found, lengths, strict=True)],
            [s.finished for s in found],
        ),
        Seen("greedy", top_k == 1, _greedy(model, rows)),
    ]


def _length(tokens: list[int], stops: Any) -> int:
    """Tokens up to the first that stops, it included."""
    return next((t + 1 for t, token in enumerate(tokens) if token in stops), len(tokens))


@torch.no_grad()
def _greedy(model: Any, rows: list[Row]) -> bool:
    """Whether every token is the likeliest."""
    for row in rows:
        logits = model(torch.tensor([row.prompt + row.responses[0]])).logits[0]
        if logits[len(row.prompt) - 1 : -1].argmax(-1).tolist() != row.responses[0]:
            return False
    return True


@in_the_loop("F3", "rollout.sample:draw", four_responses, top_k=3)
def log_probs_of_what_was_kept(right: Any, logits: Tensor, sampling: Any, uniform: Tensor) -> Any:
    """Log-probs are those of the sampler's distribution, after top-k: they add up to 1 over three
    tokens, and the ratio to the policy is off before any update."""
    token, logp = right(logits, sampling, uniform)
    logps = logits.log_softmax(-1)
    return token, logp - logps.topk(sampling.top_k).values.logsumexp(-1)


@in_the_loop("F4", "rollout.sample:sample", four_responses)
def the_models_own_settings(right: Any, model: Any, prompts: Any, sampling: Any, *rest: Any) -> Any:
    """The model's generation_config is merged over what was asked for: rollouts are near greedy and
    nobody said so."""
    return right(model, prompts, replace(sampling, top_k=model.generation_config.top_k), *rest)


@in_the_loop("F5", "rollout.sample:draw", four_responses)
def at_least_some_tokens(right: Any, logits: Tensor, sampling: Any, uniform: Tensor) -> Any:
    """A minimum length forbids the end token: what is sampled is not the policy's, and the KL of a
    model to itself is not 0."""
    logits = logits.clone()
    logits[:, END] = -torch.inf
    return right(logits, sampling, uniform)


@in_the_loop("F6", "rollout.sample:_sample_group", four_responses)
def padding_left_inside(right: Any, model: Any, prompts: Any, *rest: Any) -> list[Sampled]:
    """A batch of responses is cut to one width and no row is stripped: padding is part of the
    shorter ones."""
    found = right(model, prompts, *rest)
    width = max(len(s.tokens) for s in found)
    longer = [width - len(s.tokens) for s in found]
    return [
        replace(s, tokens=s.tokens + [END] * n, logps=s.logps + [0.0] * n)
        for s, n in zip(found, longer, strict=True)
    ]


@in_the_loop("F7", "rollout.sample:_sample_group", four_responses)
def stop_tokens_not_passed_on(
    right: Any, model: Any, prompts: Any, sampling: Any, uniforms: Any
) -> Any:
    """The stop token is known to whoever cuts the text and not to whoever samples: all responses
    run on to the limit."""
    return right(model, prompts, replace(sampling, stop_ids=(-1,)), uniforms)


@in_the_loop("F8", "rollout.sample:_sample_group", four_responses)
def one_stop_token_of_two(
    right: Any, model: Any, prompts: Any, sampling: Any, uniforms: Any
) -> Any:
    """The mask looks for one end token where the engine stops at any of several."""
    return right(model, prompts, replace(sampling, stop_ids=sampling.stop_ids[:1]), uniforms)


@in_the_loop("G2", "rollout.sample:sample", four_responses)
def ended_by_the_end_token_alone(right: Any, *args: Any, **options: Any) -> list[Sampled]:
    """Whether a response has ended is asked of the tokenizer's end token, not of the stop tokens
    that were set: a finished response pays the penalty for a missing end."""
    return [replace(s, finished=s.tokens[-1] == END) for s in right(*args, **options)]
