"""The language-model head and log-softmax in one, without the (N, V) logits that both usually cost.

Every loss on log-probs stands on `token_logprobs`. Shapes: N tokens, d hidden size, V vocabulary,
C tokens of one chunk.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

CHUNK_SIZE = 1024


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    chunk_size: int = CHUNK_SIZE,
) -> Tensor:
    """log softmax((hidden @ weight.T + bias) / temperature)[target] for every token, in nats.

    Never holds more than chunk_size x V logits, forward or backward. The matrix products run in the
    input dtype; the softmax runs in float32 for bfloat16 and float16 inputs, and the result is
    float32 then (float64 stays float64).

    Args:
        hidden: (N, d) hidden states.
        weight: (V, d) of the output embedding.
        targets: (N,) token ids.
        bias: (V,) of the output embedding, where it has one.
        temperature: divides the logits.
        chunk_size: tokens whose logits exist at one time.

    Returns:
        (N,) log-probabilities.

    Raises:
        ValueError: shapes that do not fit together, temperature not above 0, chunk_size below 1.
    """
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden {tuple(hidden.shape)} does not fit weight {tuple(weight.shape)}")
    if targets.shape != hidden.shape[:1]:
        raise ValueError(f"targets {tuple(targets.shape)} do not fit hidden {tuple(hidden.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias {tuple(bias.shape)} does not fit weight {tuple(weight.shape)}")
    if not temperature > 0 or chunk_size < 1:
        raise ValueError(f"{temperature=} must be above 0 and {chunk_size=} at least 1")
    device = hidden.device.type
    if torch.is_autocast_enabled(device):  # as torch's own linear would
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    with torch.autocast(device, enabled=False):
        arguments = (hidden, weight, targets, bias, temperature, chunk_size)
        return cast(Tensor, _TokenLogprobs.apply(*arguments))  # type: ignore[no-untyped-call]


def token_entropy(
    hidden: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    chunk_size: int = CHUNK_SIZE,
) -> Tensor:
    """Entropy of softmax((hidden @ weight.T + bias) / temperature) for every token, in nats.

    Shapes and dtypes as in `token_logprobs`, and as few logits: each chunk's are computed again in
    backward.

    Returns:
        (N,) entropies, at least 0 and at most log V.
    """

    def chunk_entropy(part: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        logps = _logits(part, weight, bias, temperature).log_softmax(-1)
        return -(logps.exp() * logps).sum(-1)

    parts = [
        cast(Tensor, checkpoint(chunk_entropy, part, weight, bias, use_reentrant=False))
        for part in hidden.split(chunk_size)
    ]
    return torch.cat(parts)


class _TokenLogprobs(torch.autograd.Function):
    """Rows of log-softmax, chunk by chunk.

    With D = (onehot(target) - softmax) / temperature a chunk's (C, V) matrix and g the upstream
    gradient:

        d hidden = g (D @ weight)        d weight = D.T @ (g hidden)

    D may be kept for backward when all N tokens fit one chunk, since chunk_size x V is what we may
    hold; nothing is computed twice then. Else backward computes every chunk's logits again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        bias: Tensor | None,
        temperature: float,
        chunk_size: int,
    ) -> Tensor:
        logps = hidden.new_empty(len(hidden), dtype=softmax_dtype(hidden))
        kept = None
        for start in range(0, len(hidden), chunk_size):
            chunk = slice(start, start + chunk_size)
            logits = _logits(hidden[chunk], weight, bias, temperature)
            log_z = logits.logsumexp(1)
            logps[chunk] = logits.gather(1, targets[chunk, None])[:, 0] - log_z
            if len(hidden) <= chunk_size and any(ctx.needs_input_grad):
                kept = _logit_gradient(logits, log_z, targets, temperature).to(hidden.dtype)
        ctx.save_for_backward(hidden, weight, targets, bias, kept)
        ctx.temperature, ctx.chunk_size = temperature, chunk_size
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, grads[0])


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients to the arguments of `_TokenLogprobs.forward`, given that to its (N,) result."""
    hidden, weight, targets, bias, kept = ctx.saved_tensors
    need_hidden, need_weight, _, need_bias, *_ = ctx.needs_input_grad
    scale = grad[:, None]  # (N, 1), in the dtype of the softmax
    grad_hidden = torch.empty_like(hidden) if need_hidden else None
    # Summed over chunks in the softmax's dtype: a bfloat16 sum would lose what late chunks add.
    grad_weight = torch.zeros_like(weight, dtype=scale.dtype) if need_weight else None
    grad_bias = torch.zeros_like(bias, dtype=scale.dtype) if need_bias else None
    for start in range(0, len(hidden), ctx.chunk_size):
        chunk = slice(start, start + ctx.chunk_size)
        if kept is not None:
            d = kept
        else:
            logits = _logits(hidden[chunk], weight, bias, ctx.temperature)
            log_z = logits.logsumexp(1)
            d = _logit_gradient(logits, log_z, targets[chunk], ctx.temperature).to(hidden.dtype)
        if grad_hidden is not None:
            grad_hidden[chunk] = scale[chunk] * (d @ weight)
        if grad_weight is not None:
            scaled = (scale[chunk] * hidden[chunk]).to(hidden.dtype)
            if grad_weight.dtype == d.dtype:
                grad_weight.addmm_(d.T, scaled)
            else:
                grad_weight += d.T @ scaled
        if grad_bias is not None:
            grad_bias += (d.T @ scale[chunk].to(d.dtype))[:, 0]
    return (
        grad_hidden,
        None if grad_weight is None else grad_weight.to(weight.dtype),
        None,
        None if grad_bias is None else grad_bias.to(bias.dtype),
        None,
        None,
    )


def softmax_dtype(x: Tensor) -> torch.dtype:
    """float32 for 16-bit inputs, else their own."""
    return torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    """(C, V) logits of one chunk, in the dtype of the softmax, in memory of their own."""
    logits = torch.nn.functional.linear(hidden, weight, bias).to(softmax_dtype(hidden))
    return logits if temperature == 1.0 else logits.div_(temperature)


def _logit_gradient(logits: Tensor, log_z: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """(C, V) (onehot(targets) - softmax(logits)) / temperature, written over the logits.

    Divided here, in the dtype of the softmax: afterwards it would be rounded to 16 bits once more.
    """
    d = logits.sub_(log_z[:, None]).exp_().neg_()
    d.scatter_add_(1, targets[:, None], torch.ones_like(log_z)[:, None])
    return d if temperature == 1.0 else d.div_(temperature)
