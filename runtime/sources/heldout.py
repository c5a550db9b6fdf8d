"""Evaluation on what is held out: rows with their responses, or prompts to sample for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator
from torch import nn

from data.errors import NOT_FINITE, InputError
from data.pocket import pocket_reward
from data.splits import Split
from losses.base import Loss, masked_sum, sum_and_count
from models.inference import forward_pass
from rollout.experience import Prompt, Rollouts, evaluate_responses, respond
from runtime.config import TrainConfig
from runtime.metrics import Totals, step_means, with_means
from runtime.sources.base import Evaluation

HELDOUT_SAMPLES = 256  # at least, over the held-out prompts
SHOWN_SAMPLES = 5


def evaluate_rows(
    accelerator: Accelerator,
    policy: nn.Module,
    loss: Loss,
    config: Any,
    data: Split,
    max_tokens: int,
) -> dict[str, float]:
    """The loss's own metrics on the held-out rows, and how often the chosen response is preferred.

    `accuracy` compares summed log-probs and `accuracy_norm` those sums per character of the
    response, the end token counting in neither: lm-eval's acc and acc_norm. A reward model's
    `accuracy` is by score, and among its own metrics.
    """
    device = accelerator.device
    rank, ranks = accelerator.process_index, accelerator.num_processes
    batches = (batch for _, batch in data.batches(max_tokens, device, rank=rank, ranks=ranks))
    if loss.responses_per_row == 1:
        batches = (batch.chosen() for batch in batches)
    means = step_means(accelerator, policy, loss, config, batches)

    totals = Totals()
    for _, batch, outputs in forward_pass(
        policy, data, max_tokens=max_tokens, device=device, rank=rank, ranks=ranks
    ):
        batch = with_means(batch, means)
        metrics = {}
        if loss.task == "causal_lm" and batch.num_sequences == 2 * batch.num_examples:
            seq_logps = masked_sum(outputs, batch.text_mask())
            metrics["accuracy"] = sum_and_count(seq_logps[0::2] > seq_logps[1::2])
            per_character = seq_logps / batch.characters
            metrics["accuracy_norm"] = sum_and_count(per_character[0::2] > per_character[1::2])
            if loss.responses_per_row == 1:
                outputs, batch = outputs[0::2], batch.chosen()
        loss.check_columns(batch)
        output = loss.step(outputs, batch, config)
        totals.add_loss(output.totals, loss.units(batch, config), dummy=batch.dummy)
        totals.add(metrics | output.metrics, dummy=batch.dummy)
    return totals.reduce(accelerator)


def evaluate_prompts(
    rollouts: Rollouts, prompts: Sequence[Prompt], *, seed: int, on_pocket: bool
) -> Evaluation:
    """Reward, length and KL of responses to held-out prompts, and some of them to read.

    Sampled with the same random numbers every time, at the training temperature. On pocket
    `success` is the share of responses that its exact grader accepts.
    """
    rank, ranks = rollouts.accelerator.process_index, rollouts.accelerator.num_processes
    times = math.ceil(HELDOUT_SAMPLES / len(prompts))
    mine = range(rank, times * len(prompts), ranks)
    asked = [prompts[i % len(prompts)] for i in mine]
    responses = respond(rollouts, asked, list(mine), seed=seed)
    evaluation = evaluate_responses(rollouts, responses)
    scores, lengths = responses.scores, [len(row.responses[0]) for row in responses.rows]
    metrics = {
        "reward": sum_and_count(scores),
        "response_length": sum_and_count(scores.new_tensor(lengths)),
        "truncated": sum_and_count(~responses.finished),
    }
    if rollouts.reference is not None:
        log_ratio = evaluation.logps - evaluation.ref_logps
        metrics["kl"] = sum_and_count(masked_sum(log_ratio, evaluation.mask))
    if on_pocket:
        right = pocket_reward([str(prompt) for prompt in responses.prompts], responses.texts)
        metrics["success"] = sum_and_count(scores.new_tensor(right))
    texts = zip(responses.prompts, responses.texts, scores.tolist(), strict=True)
    samples = [{"prompt": p, "response": r, "score": s} for p, r, s in texts]
    return Evaluation(rollouts.reduce(metrics), samples[:SHOWN_SAMPLES])


def check_finite(metrics: dict[str, float], when: str) -> None:
    """Stop if a held-out metric is NaN or infinite: such weights are not saved as a result."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise InputError(f"held-out {name} is {value} {when}", NOT_FINITE)


def check_start(before: dict[str, float], expected: dict[str, float], config: TrainConfig) -> None:
    """Stop if what must hold before the first update does not, DPO's ln 2 for one."""
    tolerance = 1e-4 if config.mixed_precision == "no" else 1e-2
    check_finite(before, "before the first update (are the model's weights damaged?)")
    for name, value in expected.items():
        if not abs(before[name] - value) <= tolerance:
            raise InputError(
                f"self-check: held-out {name} is {before[name]} before the first update, and must"
                f" be {value:.6f} while policy and reference are one; please report this"
            )
