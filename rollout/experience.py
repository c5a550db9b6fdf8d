"""One rollout: sample, score, evaluate, and work out what every token was worth.

In the order of the code below:

    1. sample       a response to each prompt, with the weights as they are
    2. score        the reward of every response; normalise, clip, penalise missing ends
    3. evaluate     log-probs of policy and reference, and values, by the training forward
    4. rewards      -β KL on every token, and the score on the last real one
    5. advantages   GAE, whitened over all ranks

InstructGPT (arXiv 2203.02155), section 3.5; "The N+ Implementation Details of RLHF with PPO" (arXiv
2403.17031), N+ below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.messages import Text
from data.row_table import Row
from data.splits import Split
from data.trees import Layout, TreeBatch
from losses.advantages import gae, masked_whiten
from losses.base import (
    ActorCriticOutput,
    Metric,
    accumulation_dtype,
    masked_sum,
    sum_and_count,
)
from losses.ppo import PPOConfig
from models.inference import forward_pass
from rollout.answers import without_turn_ends
from rollout.rewards import shape_scores, token_rewards, update_moments
from rollout.sample import Sampled, Sampling, sample, stop_ids
from rollout.score import Reward, score
from rollout.state import Experience, RolloutState


@dataclass(frozen=True)
class Prompt:
    text: Text  # as the data has it: a string, or messages
    tokens: list[int]
    columns: Mapping[str, object] = field(default_factory=dict)  # of its row, for the reward


@dataclass(frozen=True)
class Rollouts:
    """The models and settings that make rollouts; everything a rollout depends on but the state."""

    accelerator: Accelerator
    actor_critic: nn.Module  # not wrapped for DDP: ranks differ in how many forwards they need
    model: PreTrainedModel  # its policy, to sample from
    reference: nn.Module | None
    reward: Reward
    tokenizer: PreTrainedTokenizerBase
    config: PPOConfig
    layout: Layout
    max_tokens: int
    reduce: Callable[[dict[str, Metric]], dict[str, float]]  # metrics over all ranks

    @property
    def packing(self) -> dict[str, bool]:
        """Keyword arguments of `pack` for the responses."""
        return {"include_last_token": self.config.bootstraps}

    @property
    def sampling(self) -> Sampling:
        c = self.config
        stops = stop_ids(self.tokenizer, c.stop_tokens)
        return Sampling(c.max_new_tokens, stops, c.temperature, c.top_k, c.top_p)


@dataclass(frozen=True)
class Responses:
    """What this rank sampled, in one order throughout."""

    rows: list[Row]
    prompts: list[Text]
    texts: list[str]
    scores: Tensor  # (S,) as the reward gave them
    finished: Tensor  # (S,) bool


def respond(
    rollouts: Rollouts, prompts: Sequence[Prompt], prompt_index: Sequence[int], seed: int
) -> Responses:
    """Steps 1 and 2: a response to each prompt, and its raw score.

    `prompt_index` is each prompt's place among those of all ranks: what is sampled for one does not
    depend on which rank samples it.
    """
    generator = torch.Generator().manual_seed(seed)
    # The model by itself, without the autocast that `prepare` put on the training forward. With
    # it the policy that samples rounds as the one that is trained.
    with rollouts.accelerator.autocast():
        sampled = sample(
            rollouts.model,
            [prompt.tokens for prompt in prompts],
            rollouts.sampling,
            generator,
            max_tokens=4 * rollouts.max_tokens,  # nothing is kept for a backward
            prompt_index=prompt_index,
        )
    rows, texts = as_rows([prompt.tokens for prompt in prompts], sampled, rollouts.tokenizer)
    asked = [prompt.text for prompt in prompts]
    texts = without_turn_ends(asked, texts, rollouts.tokenizer)
    names = prompts[0].columns if prompts else {}  # all have the same
    columns = {name: [prompt.columns[name] for prompt in prompts] for name in names}
    scores = score(rollouts.reward, asked, texts, columns)
    device = rollouts.accelerator.device
    return Responses(
        rows,
        asked,
        texts,
        torch.tensor(scores, dtype=accumulation_dtype(device), device=device),
        torch.tensor([s.finished for s in sampled], device=device),
    )


def as_rows(
    prompts: Sequence[list[int]], sampled: Sequence[Sampled], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Row], list[str]]:
    """What was sampled as rows of one response, to be packed like any other, and as texts.

    A text is without the token that ended it; every other token is in it as it is.
    """
    rows, texts = [], []
    for i, (prompt, s) in enumerate(zip(prompts, sampled, strict=True)):
        tokens = s.tokens[:-1] if s.finished else s.tokens
        texts.append(str(tokenizer.decode(tokens, clean_up_tokenization_spaces=False)))
        rows.append(Row(i, prompt, [s.tokens], [s.finished], [max(len(texts[i]), 1)]))
    return rows, texts


class ResponseEvaluation(NamedTuple):
    """Log-probs and values of sampled responses: (S, T) each, but the last."""

    logps: Tensor
    values: Tensor
    ref_logps: Tensor
    mask: Tensor
    last_values: Tensor  # (S,) of the state after the last token


def evaluate_responses(rollouts: Rollouts, responses: Responses) -> ResponseEvaluation:
    """Step 3: log-probs and values of the responses.

    By the training forward, not from the sampler: the ratio before any update is then 1 to the last
    digits of the dtype, whatever the cache does.
    """

    def both(batch: TreeBatch) -> tuple[ActorCriticOutput, Tensor]:
        output = rollouts.actor_critic(batch)
        if rollouts.reference is None:
            return output, output.logps
        return output, rollouts.reference(batch, rollouts.config.temperature)

    rows, device = responses.rows, rollouts.accelerator.device
    split = Split(rows, rollouts.layout, rollouts.packing)
    by_row: dict[int, Tensor] = {}  # row -> (tokens, 3)
    last_values = torch.zeros(len(rows), device=device)
    passes = forward_pass(both, split, max_tokens=rollouts.max_tokens, device=device)
    for members, batch, (output, ref_logps) in passes:
        logps = output.logps
        together = torch.stack([logps, output.values.to(logps.dtype), ref_logps.to(logps.dtype)])
        for s, i in enumerate(members):
            by_row[i] = together[:, s, : batch.response_lengths[s]].T
        last_values = last_values.to(output.last_values.dtype)
        last_values[members] = output.last_values
    padded = pad_sequence([by_row[i] for i in range(len(rows))], batch_first=True)
    lengths = torch.tensor([len(row.responses[0]) for row in rows], device=device)
    mask = torch.arange(padded.shape[1], device=device) < lengths[:, None]
    old_logps, old_values, reference_logps = padded.unbind(-1)
    return ResponseEvaluation(old_logps, old_values, reference_logps, mask, last_values)


def whiten_everywhere(
    accelerator: Accelerator, x: Tensor, mask: Tensor, *, shift_mean: bool = True
) -> Tensor:
    """`masked_whiten` over all ranks: one process or eight, the same advantages."""
    rows, width = x.shape
    if accelerator.num_processes > 1:
        x, mask = (accelerator.pad_across_processes(t, dim=1) for t in (x, mask.long()))
        x, mask = accelerator.gather(x), accelerator.gather(mask).bool()
    whitened = masked_whiten(x, mask, shift_mean=shift_mean)
    start = accelerator.process_index * rows
    return whitened[start : start + rows, :width]


def rollout(
    rollouts: Rollouts,
    prompts: Sequence[Prompt],
    prompt_index: Sequence[int],
    seed: int,
    state: RolloutState,
) -> Experience:
    """Steps 1 to 5. Of `state` it reads and updates the controller of the KL and the moments."""
    config, accelerator = rollouts.config, rollouts.accelerator
    responses = respond(rollouts, prompts, prompt_index, seed)
    logps, values, ref_logps, mask, last_values = evaluate_responses(rollouts, responses)

    # scores: normalised by what has been seen on all ranks, this rollout included
    if config.score_norm:
        everyone = accelerator.gather(responses.scores)
        spread = ((everyone - everyone.mean()) ** 2).sum().item()
        update_moments(state, len(everyone), everyone.mean().item(), spread)
    scores = shape_scores(responses.scores, responses.finished, config, state)

    # rewards: the KL penalty is what a response's rewards fall short of its score
    rewards = token_rewards(
        scores, logps, ref_logps, mask, kl_coef=state.kl_coef, estimator=config.kl_estimator
    )
    penalty = scores - masked_sum(rewards, mask)
    if config.whiten_rewards:
        rewards = whiten_everywhere(accelerator, rewards, mask, shift_mean=False)

    # advantages: a response that was cut goes on with what the critic expects, if that is asked for
    bootstrap = torch.where(responses.finished, 0.0, last_values) if config.bootstraps else None
    advantages, returns = gae(
        rewards, values, mask, gamma=config.gamma, lam=config.lam, last_values=bootstrap
    )
    if config.whiten_advantages:
        advantages = whiten_everywhere(accelerator, advantages, mask)

    metrics = _rollout_metrics(rollouts, responses, logps, ref_logps, mask, scores, penalty)
    metrics["objective/kl_coef"] = state.kl_coef
    if config.kl_target is not None:  # Ziegler et al. 2019, section 2.2
        error = metrics["objective/kl"] / config.kl_target - 1
        step = min(max(error, -0.2), 0.2) * config.rollout_size / config.kl_horizon
        state.kl_coef *= 1 + step
    critic_only = state.number < config.critic_warmup
    columns = {
        "old_logps": logps,
        "old_values": values,
        "advantages": advantages,
        "returns": returns,
        "ref_logps": ref_logps,
        "policy_weight": logps.new_full((len(logps),), 0.0 if critic_only else 1.0),
    }
    mine = Split(responses.rows, rollouts.layout, rollouts.packing, columns)
    everyone = gather_split(accelerator, mine) if accelerator.num_processes > 1 else None
    return Experience(mine, metrics, everyone)


def gather_split(accelerator: Accelerator, mine: Split) -> Split:
    """The rows of all ranks, each of which has as many, in the order of their prompts; on CPU.

    Gathered when they are made, where the ranks meet anyway: a checkpoint can then be written by
    one rank without the others, who may be gone.
    """
    columns = {name: column.cpu() for name, column in mine.columns.items()}
    shares = accelerator.gather_for_metrics([(mine.rows, columns)], use_gather_object=True)
    rows = list(chain.from_iterable(zip(*(rows for rows, _ in shares), strict=True)))
    together = {}
    for name in columns:
        parts = [columns[name] for _, columns in shares]
        if parts[0].ndim == 2:
            width = max(part.shape[1] for part in parts)
            parts = [nn.functional.pad(part, (0, width - part.shape[1])) for part in parts]
        together[name] = torch.stack(parts, dim=1).flatten(0, 1)
    return replace(mine, rows=rows, columns=together)


def _rollout_metrics(
    rollouts: Rollouts,
    responses: Responses,
    logps: Tensor,
    ref_logps: Tensor,
    mask: Tensor,
    scores: Tensor,
    penalty: Tensor,
) -> dict[str, float]:
    """Means over the responses of all ranks, under TRL's names where it has them."""
    metrics: dict[str, Metric] = {}
    if rollouts.reference is not None:  # k1 a response, whatever the reward uses
        metrics["objective/kl"] = sum_and_count(masked_sum(logps - ref_logps, mask))
    metrics |= {
        "objective/entropy": sum_and_count(masked_sum(-logps, mask)),
        "objective/non_score_reward": sum_and_count(-penalty),
        "objective/rlhf_reward": sum_and_count(scores - penalty),
        "objective/scores": sum_and_count(responses.scores),
        "val/num_eos_tokens": sum_and_count(responses.finished),
        "rollout/truncated": sum_and_count(~responses.finished),
        "rollout/response_length": sum_and_count(mask.sum(-1)),
    }
    return rollouts.reduce(metrics)
