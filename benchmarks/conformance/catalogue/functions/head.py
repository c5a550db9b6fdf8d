"""Wrong ways from hidden states to log-probabilities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.conformance.catalogue.mutant import Right, mutant

HEAD = "token_logprobs"


@mutant(HEAD)
def no_max_subtracted(
    right: Right,
    *,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    **rest: Any,
) -> Tensor:
    """log(sum(exp)) as written: exp(1e4) is inf."""
    logits = linear(hidden, weight, bias) / temperature
    picked = logits.gather(1, targets[:, None])[:, 0]
    return picked - logits.exp().sum(1).log()


@mutant(HEAD)
def log_of_softmax(
    right: Right,
    *,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    **rest: Any,
) -> Tensor:
    """log(softmax): log 0 for a hopeless token."""
    probs = (linear(hidden, weight, bias) / temperature).softmax(1)
    return probs.gather(1, targets[:, None])[:, 0].log()


@mutant(HEAD)
def clipped_probability(
    right: Right,
    *,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    **rest: Any,
) -> Tensor:
    """log(softmax + 1e-8), so that it cannot be log 0."""
    probs = (linear(hidden, weight, bias) / temperature).softmax(1)
    return (probs.gather(1, targets[:, None])[:, 0] + 1e-8).log()


@mutant(HEAD)
def temperature_multiplied(right: Right, *, temperature: float = 1.0, **rest: Any) -> Tensor:
    """Logits times the temperature."""
    return right(temperature=1 / temperature, **rest)


@mutant(HEAD, bug="F2")
def temperature_forgotten(right: Right, *, temperature: float = 1.0, **rest: Any) -> Tensor:
    """Sampled at T, scored at 1: ratios differ from 1 before any update."""
    return right(**rest)


@mutant(HEAD)
def temperature_after_softmax(right: Right, *, temperature: float = 1.0, **rest: Any) -> Tensor:
    """Log-probs divided by it: not normalised any more."""
    return right(**rest) / temperature


@mutant(HEAD)
def bias_not_cooled(
    right: Right, *, bias: Tensor | None = None, temperature: float = 1.0, **rest: Any
) -> Tensor:
    """The bias added after the division."""
    bias = None if bias is None else bias * temperature
    return right(bias=bias, temperature=temperature, **rest)


@mutant(HEAD)
def bias_forgotten(right: Right, *, bias: Tensor | None = None, **rest: Any) -> Tensor:
    """A head with a bias, read without it."""
    return right(**rest)


@mutant(HEAD, bug="B3")
def shifted_targets(right: Right, *, targets: Tensor, **rest: Any) -> Tensor:
    """Every position scores its neighbour's token: labels shifted twice."""
    return right(targets=targets.roll(-1), **rest)


@mutant(HEAD)
def greedy_targets(
    right: Right,
    *,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    **rest: Any,
) -> Tensor:
    """The log-prob of the model's favourite instead of the target's."""
    return right(
        hidden=hidden,
        weight=weight,
        bias=bias,
        targets=linear(hidden, weight, bias).argmax(1),
        **rest,
    )


@mutant(HEAD)
def no_onehot(
    right: Right,
    *,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    **rest: Any,
) -> Tensor:
    """Gradient -p: the target's own logit is never pushed up."""
    logits = linear(hidden, weight, bias) / temperature
    return logits.detach().gather(1, targets[:, None])[:, 0] - logits.logsumexp(1)


@mutant(HEAD)
def no_partition(
    right: Right,
    *,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    **rest: Any,
) -> Tensor:
    """Gradient onehot: nothing is pushed down."""
    logits = linear(hidden, weight, bias) / temperature
    return logits.gather(1, targets[:, None])[:, 0] - logits.detach().logsumexp(1)


@mutant(HEAD)
def frozen_head(right: Right, *, weight: Tensor, **rest: Any) -> Tensor:
    """A detached term: the output embedding never learns."""
    return right(weight=weight.detach(), **rest)


@mutant(HEAD)
def half_precision_softmax(
    right: Right,
    *,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    **rest: Any,
) -> Tensor:
    """Softmax in the dtype of the head: log-probs 7e-5 apart become equal."""
    logits = linear(hidden, weight, bias) / temperature
    logps = logits.log_softmax(1).gather(1, targets[:, None])[:, 0]
    return logps.float() if hidden.dtype in (torch.bfloat16, torch.float16) else logps


@mutant(HEAD)
def all_logits_at_once(right: Right, *, chunk_size: int = 1024, **rest: Any) -> Tensor:
    """chunk_size ignored: right, and out of memory at N = 16000, V = 128000."""
    return right(chunk_size=1 << 30, **rest)


@mutant(HEAD)
def chunks_kept_for_backward(
    right: Right, *, hidden: Tensor, targets: Tensor, chunk_size: int = 1024, **rest: Any
) -> Tensor:
    """Chunked, but autograd holds on to every chunk until backward."""
    parts = zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True)
    return torch.cat([right(hidden=h, targets=t, **rest) for h, t in parts])


@mutant(HEAD)
def last_rows_dropped(
    right: Right, *, hidden: Tensor, targets: Tensor, chunk_size: int = 1024, **rest: Any
) -> Tensor:
    """N // chunk_size chunks: the rest of the rows stays 0."""
    whole = len(hidden) // chunk_size * chunk_size or len(hidden)
    logps = right(hidden=hidden[:whole], targets=targets[:whole], chunk_size=chunk_size, **rest)
    return torch.cat([logps, logps.new_zeros(len(hidden) - whole)])


@mutant(HEAD)
def last_chunk_trains_the_head(
    right: Right,
    *,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    chunk_size: int = 1024,
    **rest: Any,
) -> Tensor:
    """The head's gradient assigned chunk by chunk instead of added up."""
    last = (len(hidden) - 1) // chunk_size * chunk_size
    head = right(
        hidden=hidden[:last],
        targets=targets[:last],
        weight=weight.detach(),
        chunk_size=chunk_size,
        **rest,
    )
    tail = right(
        hidden=hidden[last:], targets=targets[last:], weight=weight, chunk_size=chunk_size, **rest
    )
    return torch.cat([head, tail])


@mutant(HEAD)
def no_rows_no_graph(right: Right, *, hidden: Tensor, targets: Tensor, **rest: Any) -> Tensor:
    """A micro-batch without response tokens takes a mean over nothing."""
    logps = right(hidden=hidden, targets=targets, **rest)
    return logps if len(hidden) else logps.mean()


@mutant(HEAD)
def cooled_in_place(
    right: Right, *, hidden: Tensor, temperature: float = 1.0, **rest: Any
) -> Tensor:
    """The temperature divided into the caller's own hidden states."""
    hidden.data.div_(temperature)
    return right(hidden=hidden, **rest)
