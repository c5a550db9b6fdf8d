"""The held-out rows: the loss there, and how often the chosen response is preferred."""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from data.batches import inference_batches
from data.errors import NOT_FINITE, InputError
from losses.base import Loss, masked_sum, sum_and_count
from runtime.config import TrainConfig
from runtime.inputs import Rows
from runtime.metrics import Totals


@torch.no_grad()
def evaluate(
    accelerator: Accelerator,
    policy: nn.Module,
    loss: Loss,
    config: Any,
    data: Rows,
    max_tokens: int,
) -> dict[str, float]:
    """The loss's own metrics on the held-out rows, and how often the chosen response is preferred.

    `accuracy` compares summed log-probs and `accuracy_norm` those sums per character of the
    response, the end token counting in neither: lm-eval's acc and acc_norm. A reward model's
    `accuracy` is by score, and among its own metrics.
    """
    totals = Totals()
    plan = inference_batches(data.lengths, accelerator.num_processes, max_tokens)
    for members in plan[accelerator.process_index]:
        batch = data.batch(members, accelerator.device)
        outputs = policy(batch)
        metrics = {}
        if loss.model == "logps" and batch.num_sequences == 2 * batch.num_examples:
            seq_logps = masked_sum(outputs, batch.text_mask())
            metrics["accuracy"] = sum_and_count(seq_logps[0::2] > seq_logps[1::2])
            per_character = seq_logps / batch.characters
            metrics["accuracy_norm"] = sum_and_count(per_character[0::2] > per_character[1::2])
            if loss.responses_per_row == 1:
                outputs, batch = outputs[0::2], batch.chosen()
        output = loss.step(outputs, batch, config)
        totals.add_loss(output.totals, loss.units(batch, config), dummy=batch.dummy)
        totals.add(metrics | output.metrics, dummy=batch.dummy)
    return totals.reduce(accelerator)


def check_finite(metrics: dict[str, float], when: str) -> None:
    """Stop if a held-out metric is NaN or infinite: such weights are not saved as a result."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise InputError(f"held-out {name} is {value} {when}", NOT_FINITE)


def check_start(before: dict[str, float], expected: dict[str, float], config: TrainConfig) -> None:
    """Stop if what must hold before the first update does not, DPO's ln 2 for one."""
    tolerance = 1e-4 if config.mixed_precision == "no" and config.dtype != "bfloat16" else 1e-2
    check_finite(before, "before the first update (are the model's weights damaged?)")
    for name, value in expected.items():
        if not abs(before[name] - value) <= tolerance:
            raise InputError(
                f"self-check: held-out {name} is {before[name]} before the first update, and must"
                f" be {value:.6f} while policy and reference are one; please report this"
            )
