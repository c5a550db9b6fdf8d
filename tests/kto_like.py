"""A loss of KTO's form, to show what `Loss.before_step` is for; it is no part of losses/.

Ethayarajh et al. 2024 (arXiv 2402.01306), eq. 8: the log-ratio r of a response to the reference is
compared with a point z0 that is one number for the whole step, has no gradient and is at least 0.
Here chosen responses are desirable and rejected ones are not, and z0 is the mean of r over all of
them (KTO estimates it from mismatched prompts and responses).
"""

from dataclasses import dataclass, replace

import torch

from losses.base import Loss, LossOutput, masked_sum, pairs, sum_and_count


@dataclass(frozen=True)
class KTOLikeConfig:
    beta: float = 0.1


def log_ratios(logps, batch):
    """(S,) log π(y|x) - log π_ref(y|x)."""
    return masked_sum(logps, batch.mask) - batch.columns["ref_seq_logps"]


def before_step(policy, batch, config):
    return {"z0": sum_and_count(log_ratios(policy(batch), batch))}


def step(logps, batch, config):
    above = log_ratios(logps, batch) - batch.columns["z0"].clamp(min=0)
    signs = [1.0, -1.0][: batch.num_sequences // batch.num_examples]
    signs = above.new_tensor(signs).repeat(batch.num_examples)
    losses = 1 - torch.sigmoid(config.beta * signs * above)
    return LossOutput({"pairs": losses.sum()}, {"z0": sum_and_count(batch.columns["z0"])})


LOSS = Loss(
    name="kto_like",
    config=KTOLikeConfig,
    step=step,
    units=pairs,
    responses_per_row=2,
    learning_rate=1e-6,
    reads=("ref_seq_logps", "z0"),
    needs=lambda config: frozenset({"reference"}),
    before_step=before_step,
)
CHOSEN_ONLY = replace(LOSS, responses_per_row=1)
