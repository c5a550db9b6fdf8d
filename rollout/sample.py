"""Responses drawn from a causal LM, each token with the log-probability it was drawn with.

The whole loop is here: one prefill over left-padded prompts, then one token a row and step with a
key-value cache. A row that has ended leaves the batch, cache and all, so a step costs what the
active rows cost. Nothing is read from the model's generation_config: what is not in `Sampling` does
not happen.

A draw is an inverse CDF: one uniform number a row and step, from a stream that belongs to the row
alone. So a row's response does not depend on which rows share its batch, on when they leave it, or
on how `max_tokens` cuts the prompts. (Only rounding in the logits does, and it shows where a number
falls within it of the border between two tokens.)

Shapes: G rows of a group, g of them still active, W longest prompt, V vocabulary.
"""

from __future__ import annotations

import difflib
import inspect
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from data.errors import USAGE, InputError
from data.tokens import end_token

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# Steps between two looks at which rows have ended. To look, the host waits for the device: on a CPU
# that is free, and a row that stays has its full price; on a GPU it is the other way round.
LOOK_EVERY = {"cpu": 1}


@dataclass(frozen=True)
class Sampling:
    """How to draw; greedy decoding is top_k=1."""

    max_new_tokens: int
    stop_ids: tuple[int, ...]  # any of them ends a response, and belongs to it
    temperature: float = 1.0  # divides the logits, before all else
    top_k: int = 0  # draw among the k likeliest tokens; 0: among all
    top_p: float = 1.0  # and of those, among the fewest that have this share of their mass

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens {self.max_new_tokens} must be at least 1")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"temperature {self.temperature} must be above 0 and finite; greedy is top_k 1"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k {self.top_k} must not be negative; 0 is off")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p} must be above 0 and at most 1; 1 is off")


def stop_ids(tokenizer: PreTrainedTokenizerBase, stop_tokens: str | None) -> tuple[int, ...]:
    """Ids of the tokens that end a response: the end token, then those named, comma-separated.

    Raises:
        InputError: a name is not one token of the tokenizer, or it has no end token.
    """
    ids = [end_token(tokenizer)]
    for token in stop_tokens.split(",") if stop_tokens is not None else ():
        number: Any = tokenizer.convert_tokens_to_ids(token)
        if number is None or tokenizer.convert_ids_to_tokens(number) != token:
            close = difflib.get_close_matches(token, tokenizer.get_vocab(), n=1)
            special = (str(t) for t in tokenizer.added_tokens_decoder.values())
            guess = f"did you mean {close[0]}?" if close else f"such are {', '.join(special)}"
            reason = f"not one token of the tokenizer; {guess}"
            raise InputError(f"--stop_tokens {token}: {reason}", USAGE)
        ids.append(number)
    return tuple(dict.fromkeys(ids))


@dataclass(frozen=True)
class Sampled:
    """One response.

    `logps` are those of log softmax(logits / temperature) over the whole vocabulary, whatever top-k
    and top-p left of it. PPO's ratio is between two such distributions, and the training forward
    computes the other one (`models.forward.Policy`): dividing only one of them by the kept mass
    would put the ratio off 1 before any update. Top-k and top-p bias which tokens are seen, and
    that is all they do.
    """

    tokens: list[int]  # the stop token included, if there is one
    logps: list[float]  # of each token, in nats
    finished: bool  # ended by a stop token, not by max_new_tokens


def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    generator: torch.Generator,
    *,
    max_tokens: int = 16384,
    prompt_index: Sequence[int] | None = None,
) -> list[Sampled]:
    """One response to each prompt, in their order.

    Args:
        model: a causal LM; put in eval mode here, and every module's mode restored.
        prompts: token ids, at least one each.
        generator: gives one number a call, the seed of all rows' streams; on any device.
        max_tokens: prompt and response tokens, padding included, that a batch may come to; a
            prompt that is longer by itself stands alone.
        prompt_index: (len(prompts),) a number for each prompt, default 0, 1, ...: its stream of
            random numbers follows from that. A rank that samples prompts[rank::ranks] and numbers
            them so gets what one process would.

    Raises:
        ValueError: a prompt without tokens, or not one number a prompt.
        FloatingPointError: the logits are NaN or infinite.
    """
    prompt_index = range(len(prompts)) if prompt_index is None else prompt_index
    if len(prompt_index) != len(prompts):
        raise ValueError(f"{len(prompt_index)} row numbers for {len(prompts)} prompts")
    for number, prompt in zip(prompt_index, prompts, strict=True):
        if len(prompt) == 0:
            raise ValueError(f"prompt {number} has no token for the first one to follow")
    seed = torch.randint(2**62, (), generator=generator, device=generator.device).item()

    results: dict[int, Sampled] = {}
    # Longest first: a group is as wide as its first prompt, and what does not fit shows at once.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    with torch.no_grad(), _evaluating(model):
        while order:
            width = len(prompts[order[0]]) + sampling.max_new_tokens
            count = max(1, max_tokens // width)
            group, order = order[:count], order[count:]
            streams = [random.Random(f"{seed}/{prompt_index[i]}") for i in group]
            uniforms = [[s.random() for _ in range(sampling.max_new_tokens)] for s in streams]
            responses = _sample_group(model, [prompts[i] for i in group], sampling, uniforms)
            results.update(zip(group, responses, strict=True))
    return [results[i] for i in range(len(prompts))]


def _sample_group(
    model: PreTrainedModel,
    prompts: list[Sequence[int]],
    sampling: Sampling,
    uniforms: list[list[float]],
) -> list[Sampled]:
    """Responses to prompts that fit one batch; uniforms[row][step] decides a draw."""
    from transformers import DynamicCache

    # Left-padded prompts: the mask of prompt and response, and positions that begin after padding.
    width, steps = max(map(len, prompts)), sampling.max_new_tokens
    padding = torch.tensor([width - len(prompt) for prompt in prompts])[:, None]
    mask = torch.arange(width + steps) >= padding  # (G, W + steps)
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    ids[mask[:, :width]] = torch.tensor([token for prompt in prompts for token in prompt])
    positions = (mask[:, :width].cumsum(-1) - 1).clamp(min=0)

    # What is drawn, on the model's device; -1 is a token that was not reached.
    device = model.device
    ids, positions, mask = ids.to(device), positions.to(device), mask.long().to(device)
    draws = torch.tensor(uniforms, dtype=torch.float64, device=device)  # (G, steps)
    stops = torch.tensor(sampling.stop_ids, dtype=torch.long, device=device)
    tokens = torch.full((len(prompts), steps), -1, device=device)  # no stop token
    logps = torch.zeros((len(prompts), steps), dtype=torch.float64, device=device)
    active = torch.arange(len(prompts), device=device)  # the rows still in the batch
    ended = torch.zeros_like(active, dtype=torch.bool)  # of these
    look_every = LOOK_EVERY.get(device.type, 8)
    cache = DynamicCache(config=model.config)
    last_only = _last_only(model)

    for step in range(steps):
        # One forward: the whole prompt in the first step, afterwards the token just drawn.
        output = model(
            input_ids=ids,
            attention_mask=mask[:, : width + step],
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **last_only,
        )
        drawn, logp = draw(output.logits[:, -1], sampling, draws[:, step])
        tokens[active, step], logps[active, step] = drawn, logp.double()
        ids, positions = drawn[:, None], positions[:, -1:] + 1

        # Rows that drew a stop token leave the batch, and their keys and values the cache. What
        # they drew between their end and the next look is cut off below.
        ended |= torch.isin(drawn, stops)
        if (step + 1) % look_every == 0 and ended.any():
            rows: Any = (~ended).nonzero()[:, 0]
            if len(rows) == 0:
                break
            ids, positions, mask, draws, active, ended = (
                x.index_select(0, rows) for x in (ids, positions, mask, draws, active, ended)
            )
            cache.reorder_cache(rows)  # made for beams: selects rows, here fewer than there were

    stopped = torch.isin(tokens, stops)
    finished = stopped.any(-1)
    lengths = torch.where(finished, stopped.int().argmax(-1) + 1, steps)
    reached = torch.arange(steps, device=device) < lengths[:, None]
    if not logps[reached].isfinite().all():
        raise FloatingPointError("the policy's logits are NaN or infinite: nothing to sample from")
    columns = (x.tolist() for x in (tokens, logps, lengths, finished))
    return [Sampled(t[:n], p[:n], end) for t, p, n, end in zip(*columns, strict=True)]


def draw(logits: Tensor, sampling: Sampling, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """(g,) a token of each row, and its log-probability over the whole vocabulary.

    Args:
        logits: (g, V); bfloat16 and float16 are taken to float32 first, as in losses/logprobs.py.
        uniform: (g,) in [0, 1): the token is the first at which the CDF is above it.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / sampling.temperature
    logps = logits.log_softmax(-1)
    kept, ids = logps, None
    if 0 < sampling.top_k < logps.shape[-1] or sampling.top_p < 1:
        kept, ids = logps.topk(min(sampling.top_k or logps.shape[-1], logps.shape[-1]))
        kept = kept.double().log_softmax(-1)
    cdf = kept.exp().cumsum(-1, dtype=torch.float64)
    if sampling.top_p < 1:  # likeliest first here: keep a token if those before it fall short of p
        before = torch.nn.functional.pad(cdf, (1, -1))
        last = (before < sampling.top_p).sum(-1, keepdim=True) - 1
        cdf = cdf.minimum(cdf.gather(-1, last))
    # Below the last value, so that a token without probability is never the first above it.
    chosen = torch.searchsorted(cdf, uniform[:, None] * cdf[:, -1:], right=True)
    chosen = chosen.clamp(max=cdf.shape[-1] - 1)  # NaN finds no place; the caller reports it
    token = chosen if ids is None else ids.gather(-1, chosen)
    return token[:, 0], logps.gather(-1, token)[:, 0]


def _last_only(model: PreTrainedModel) -> dict[str, Any]:
    """Asks for the logits of the last position alone, where the model can be asked."""
    parameters = inspect.signature(model.forward).parameters
    return {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Every module in eval mode; each gets its own mode back.

    Without it dropout would change the distribution, and a layer that is in training mode for
    gradient checkpointing would ignore the cache.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
