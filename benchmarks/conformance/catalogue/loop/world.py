"""The small world in which the checks look at our loop: a tiny GPT-2 and rows for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from data.encode import Row
from data.trees import TreeBatch, pack

VOCABULARY, END = 12, 2  # the pad token is the end token, as it is for GPT-2
CPU = torch.device("cpu")
SHAPE: dict[str, Any] = dict(
    vocab_size=VOCABULARY,
    **dict(n_embd=16, n_layer=2, n_head=2, n_positions=64),
    **dict(bos_token_id=END, eos_token_id=END, pad_token_id=END),
)
CLASSES = {
    "causal": GPT2LMHeadModel,
    "sequence": GPT2ForSequenceClassification,
    "token": GPT2ForTokenClassification,
}


def tiny(
    kind: str = "causal", seed: int = 0, sharpness: float = 5.0, **more: Any
) -> PreTrainedModel:
    """An untrained GPT-2 in float64 and eval mode, for which positions matter."""
    torch.manual_seed(seed)
    labels = {} if kind == "causal" else {"num_labels": 1}
    model: PreTrainedModel = CLASSES[kind](GPT2Config(**(SHAPE | labels | more))).double().eval()
    with torch.no_grad():  # far from uniform: initial weights are of size 0.02
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(sharpness)
    return model


def rows(responses: int = 1, count: int = 5) -> list[Row]:
    """Rows of unequal lengths; token 0, and the end token, also in the middle of a response."""
    made = [
        ([5, 6, 7], [4, 0, 3, END], [4, 8, END]),
        ([8], [9, END], [3, 0, 5, 6, END]),
        ([3, 4], [7, END, 6, 5, 8, END], [7, 4, END]),
        ([6, 9, 3, 4], [0, 8, END], [END, 5, END]),
        ([5], [10, 3, 9, 7, 11, 4, END], [11, END]),
    ]
    return [
        Row(i, prompt, list(answers[:responses]), [True] * responses, [4] * responses)
        for i, (prompt, *answers) in enumerate(made[:count])
    ]


def alone(model: nn.Module, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """(T,) log-probs of one response by itself: no padding, no mask, no code of ours."""
    logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    found: Tensor = logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]
    return found


def flat_gradient(model: nn.Module) -> Tensor:
    """All gradients as one vector; zeros for what has none."""
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return torch.cat([part.flatten() for part in parts])


def batch_of(
    logps: Sequence[Sequence[float]], *, prompt: int = 2, padding: float = 0.0, **more: Any
) -> tuple[Tensor, TreeBatch]:
    """Log-probs of responses, two an example, as the (S, T) table that a loss's step is given.

    They are told, not computed; `padding` stands outside the mask.
    """
    pairs = list(zip(logps[0::2], logps[1::2], strict=True))
    made = [
        Row(i, [5] * prompt, [[3 + k] * len(pair[k]) for k in (0, 1)], [True] * 2, [4] * 2)
        for i, pair in enumerate(pairs)
    ]
    batch = pack(made, layout="rectangle")
    table = torch.full(batch.mask.shape, padding, dtype=torch.float64)
    table[batch.mask] = torch.tensor([x for row in logps for x in row], dtype=torch.float64)
    return table, replace(batch, **more)


def one_process() -> Accelerator:
    return Accelerator(cpu=True)
