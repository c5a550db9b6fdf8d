"""Wrong ways from hidden states to log-probabilities (see mutants.py)."""

import torch
from mutants import mutant
from torch.nn.functional import linear

HEAD = "token_logprobs"


@mutant(HEAD)
def no_max_subtracted(right, *, hidden, weight, targets, bias=None, temperature=1.0, **rest):
    """log(sum(exp)) as written: exp(1e4) is inf."""
    logits = linear(hidden, weight, bias) / temperature
    picked = logits.gather(1, targets[:, None])[:, 0]
    return picked - logits.exp().sum(1).log()


@mutant(HEAD)
def log_of_softmax(right, *, hidden, weight, targets, bias=None, temperature=1.0, **rest):
    """log(softmax): log 0 for a hopeless token."""
    probs = (linear(hidden, weight, bias) / temperature).softmax(1)
    return probs.gather(1, targets[:, None])[:, 0].log()


@mutant(HEAD)
def clipped_probability(right, *, hidden, weight, targets, bias=None, temperature=1.0, **rest):
    """log(softmax + 1e-8), so that it cannot be log 0."""
    probs = (linear(hidden, weight, bias) / temperature).softmax(1)
    return (probs.gather(1, targets[:, None])[:, 0] + 1e-8).log()


@mutant(HEAD)
def temperature_multiplied(right, *, temperature=1.0, **rest):
    """Logits times the temperature."""
    return right(temperature=1 / temperature, **rest)


@mutant(HEAD)
def temperature_forgotten(right, *, temperature=1.0, **rest):
    """Sampled at T, scored at 1: ratios differ from 1 before any update (F2)."""
    return right(**rest)


@mutant(HEAD)
def temperature_after_softmax(right, *, temperature=1.0, **rest):
    """Log-probs divided by it: not normalised any more."""
    return right(**rest) / temperature


@mutant(HEAD)
def bias_not_cooled(right, *, bias=None, temperature=1.0, **rest):
    """The bias added after the division."""
    bias = None if bias is None else bias * temperature
    return right(bias=bias, temperature=temperature, **rest)


@mutant(HEAD)
def bias_forgotten(right, *, bias=None, **rest):
    return right(**rest)


@mutant(HEAD)
def shifted_targets(right, *, targets, **rest):
    """Every position scores its neighbour's token: labels shifted twice (B3)."""
    return right(targets=targets.roll(-1), **rest)


@mutant(HEAD)
def greedy_targets(right, *, hidden, weight, targets, bias=None, **rest):
    """The log-prob of the model's favourite instead of the target's."""
    return right(
        hidden=hidden,
        weight=weight,
        bias=bias,
        targets=linear(hidden, weight, bias).argmax(1),
        **rest,
    )


@mutant(HEAD)
def no_onehot(right, *, hidden, weight, targets, bias=None, temperature=1.0, **rest):
    """Gradient -p: the target's own logit is never pushed up."""
    logits = linear(hidden, weight, bias) / temperature
    return logits.detach().gather(1, targets[:, None])[:, 0] - logits.logsumexp(1)


@mutant(HEAD)
def no_partition(right, *, hidden, weight, targets, bias=None, temperature=1.0, **rest):
    """Gradient onehot: nothing is pushed down."""
    logits = linear(hidden, weight, bias) / temperature
    return logits.gather(1, targets[:, None])[:, 0] - logits.detach().logsumexp(1)


@mutant(HEAD)
def frozen_head(right, *, weight, **rest):
    """A detached term: the output embedding never learns."""
    return right(weight=weight.detach(), **rest)


@mutant(HEAD)
def half_precision_softmax(right, *, hidden, weight, targets, bias=None, temperature=1.0, **rest):
    """Softmax in the dtype of the head: log-probs 7e-5 apart become equal (C18)."""
    logits = linear(hidden, weight, bias) / temperature
    logps = logits.log_softmax(1).gather(1, targets[:, None])[:, 0]
    return logps.float() if hidden.dtype in (torch.bfloat16, torch.float16) else logps


@mutant(HEAD)
def all_logits_at_once(right, *, chunk_size=1024, **rest):
    """chunk_size ignored: right, and out of memory at N = 16000, V = 128000."""
    return right(chunk_size=1 << 30, **rest)


@mutant(HEAD)
def chunks_kept_for_backward(right, *, hidden, targets, chunk_size=1024, **rest):
    """Chunked, but autograd holds on to every chunk until backward."""
    parts = zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True)
    return torch.cat([right(hidden=h, targets=t, **rest) for h, t in parts])


@mutant(HEAD)
def last_rows_dropped(right, *, hidden, targets, chunk_size=1024, **rest):
    """N // chunk_size chunks: the rest of the rows stays 0."""
    whole = len(hidden) // chunk_size * chunk_size or len(hidden)
    logps = right(hidden=hidden[:whole], targets=targets[:whole], chunk_size=chunk_size, **rest)
    return torch.cat([logps, logps.new_zeros(len(hidden) - whole)])


@mutant(HEAD)
def last_chunk_trains_the_head(right, *, hidden, weight, targets, chunk_size=1024, **rest):
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
def no_rows_no_graph(right, *, hidden, targets, **rest):
    """A micro-batch without response tokens takes a mean over nothing."""
    logps = right(hidden=hidden, targets=targets, **rest)
    return logps if len(hidden) else logps.mean()


@mutant(HEAD)
def cooled_in_place(right, *, hidden, temperature=1.0, **rest):
    """The temperature divided into the caller's own hidden states."""
    hidden.data.div_(temperature)
    return right(hidden=hidden, **rest)
