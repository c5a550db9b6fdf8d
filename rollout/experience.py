"""One rollout: sample, score, look back, and work out what every token was worth.

In the order of the code below:

    1. sample       a response to each prompt, with the weights as they are
    2. score        the reward of every response; normalise, clip, penalise missing ends
    3. look back    log-probs of policy and reference, and values, by the training forward
    4. rewards      -β KL on every token, and the score on the last real one
    5. advantages   GAE, whitened over all ranks

InstructGPT (arXiv 2203.02155), section 3.5; "The N+ Implementation Details of RLHF with PPO" (arXiv
2403.17031), N+ below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.batches import inference_batches
from data.encode import Row
from data.trees import Layout, Trajectory, pack, tree_tokens
from losses.advantages import KLKind, gae, kl_estimate, masked_whiten
from losses.base import Metric, accumulation_dtype, masked_sum, sum_and_count
from losses.ppo import PPOConfig
from rollout.sample import Sampled, Sampling, sample, stop_ids
from rollout.score import Reward, score


@dataclass(frozen=True)
class Prompt:
    text: str
    tokens: list[int]


@dataclass
class RolloutState:
    """All that one rollout hands to the next; what a resumed run would have to know."""

    kl_coef: float
    rollout: int = 0
    # Running moments of the scores (Welford), for --score_norm.
    scores_seen: float = 0.0
    score_mean: float = 0.0
    score_m2: float = 0.0
    # What the loop says of the last optimizer step, for --target_kl.
    last_step: dict[str, float] = field(default_factory=dict)
    # What a rollout says of itself, for the log of its first optimizer step.
    metrics: dict[str, float] = field(default_factory=dict)


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
    def sampling(self) -> Sampling:
        c = self.config
        stops = stop_ids(self.tokenizer, c.stop_tokens)
        return Sampling(c.max_new_tokens, stops, c.temperature, c.top_k, c.top_p)


@dataclass(frozen=True)
class Responses:
    """What this rank sampled, in one order throughout."""

    rows: list[Row]
    prompts: list[str]
    texts: list[str]
    scores: Tensor  # (S,) as the reward gave them
    finished: Tensor  # (S,) bool


def respond(
    rollouts: Rollouts, prompts: Sequence[Prompt], numbers: Sequence[int], seed: int
) -> Responses:
    """Steps 1 and 2: a response to each prompt, and its raw score. `numbers` are the prompts' own
    among those of all ranks: what is sampled for one does not depend on who samples it."""
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
            rows=numbers,
        )
    rows, texts = as_rows([prompt.tokens for prompt in prompts], sampled, rollouts.tokenizer)
    asked = [prompt.text for prompt in prompts]
    scores = score(rollouts.reward, asked, texts)
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
    """(S, T) each, but the last."""

    logps: Tensor
    values: Tensor
    ref_logps: Tensor
    mask: Tensor
    after: Tensor  # (S,) value of the state after the last token


def evaluate_responses(rollouts: Rollouts, responses: Responses) -> ResponseEvaluation:
    """Step 3: what the models say of the responses.

    By the training forward, not from the sampler: the ratio before any update is then 1 to the last
    digits of the dtype, whatever the cache does.
    """
    rows, device = responses.rows, rollouts.accelerator.device
    bootstrap = rollouts.config.bootstraps
    found: dict[int, Tensor] = {}  # row -> (tokens, 3)
    after = torch.zeros(len(rows), device=device)
    lengths = [tree_tokens(row, include_last_token=bootstrap) for row in rows]
    for members in inference_batches(lengths, 1, rollouts.max_tokens)[0]:
        part = [rows[i] for i in members]
        batch = pack(part, layout=rollouts.layout, include_last_token=bootstrap).to(device)
        with torch.no_grad():  # not as a decorator: mutmut leaves out what has that one
            logps, values, last_values, _ = rollouts.actor_critic(batch)
            ref_logps = logps
            if rollouts.reference is not None:
                ref_logps = rollouts.reference(batch, rollouts.config.temperature)
        together = torch.stack([logps, values.to(logps.dtype), ref_logps.to(logps.dtype)], dim=-1)
        for i, columns, length in zip(members, together, batch.mask.sum(-1), strict=True):
            found[i] = columns[:length]
        after = after.to(last_values.dtype)
        after[members] = last_values
    padded = pad_sequence([found[i] for i in range(len(rows))], batch_first=True)
    counts = torch.tensor([len(row.responses[0]) for row in rows], device=device)
    mask = torch.arange(padded.shape[1], device=device) < counts[:, None]
    policy_logps, old_values, reference_logps = padded.unbind(-1)
    return ResponseEvaluation(policy_logps, old_values, reference_logps, mask, after)


def shape_scores(
    scores: Tensor, finished: Tensor, config: PPOConfig, state: RolloutState
) -> Tensor:
    """The rest of step 2: normalise by what has been seen, clip, penalise a missing end."""
    if config.score_norm:
        deviation = math.sqrt(state.score_m2 / max(state.scores_seen, 1.0))
        scores = (scores - state.score_mean) / max(deviation, 1e-8)
    if config.score_clip is not None:
        scores = scores.clamp(-config.score_clip, config.score_clip)
    return scores - config.missing_eos_penalty * (~finished).to(scores.dtype)


def update_moments(state: RolloutState, count: float, mean: float, m2: float) -> None:
    """Fold (count, mean, sum of squared deviations) of new scores into the running moments."""
    total = state.scores_seen + count
    delta = mean - state.score_mean
    state.score_m2 += m2 + delta**2 * state.scores_seen * count / total
    state.score_mean += delta * count / total
    state.scores_seen = total


def token_rewards(
    scores: Tensor, logps: Tensor, ref_logps: Tensor, mask: Tensor, *, kl_coef: float, kind: KLKind
) -> Tensor:
    """Step 4: (S, T) reward of every token: -β KL, and the score on the last real one (N+ 1.4)."""
    kl = torch.where(mask, kl_estimate(logps, ref_logps, kind=kind), 0.0)
    last = mask.sum(-1, keepdim=True) - 1
    return (-kl_coef * kl).scatter_add(1, last, scores[:, None].to(kl.dtype))


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
    numbers: Sequence[int],
    seed: int,
    state: RolloutState,
) -> tuple[list[Row], Trajectory]:
    """Steps 1 to 5, and in `state.metrics` what there is to say of them."""
    config, accelerator = rollouts.config, rollouts.accelerator
    responses = respond(rollouts, prompts, numbers, seed)
    logps, values, ref_logps, mask, after = evaluate_responses(rollouts, responses)

    if config.score_norm:
        everyone = accelerator.gather(responses.scores)
        spread = ((everyone - everyone.mean()) ** 2).sum().item()
        update_moments(state, len(everyone), everyone.mean().item(), spread)
    scores = shape_scores(responses.scores, responses.finished, config, state)
    rewards = token_rewards(
        scores, logps, ref_logps, mask, kl_coef=state.kl_coef, kind=config.kl_estimator
    )
    penalty = scores - masked_sum(rewards, mask)
    if config.whiten_rewards:
        rewards = whiten_everywhere(accelerator, rewards, mask, shift_mean=False)
    cut = torch.where(responses.finished, 0.0, after) if config.bootstraps else None
    advantages, returns = gae(
        rewards, values, mask, gamma=config.gamma, lam=config.lam, last_values=cut
    )
    if config.whiten_advantages:
        advantages = whiten_everywhere(accelerator, advantages, mask)

    about_kl = {}
    if rollouts.reference is not None:  # k1 a response, whatever the reward uses
        about_kl["objective/kl"] = sum_and_count(masked_sum(logps - ref_logps, mask))
    state.metrics = rollouts.reduce(
        about_kl
        | {
            "objective/entropy": sum_and_count(masked_sum(-logps, mask)),
            "objective/non_score_reward": sum_and_count(-penalty),
            "objective/rlhf_reward": sum_and_count(scores - penalty),
            "objective/scores": sum_and_count(responses.scores),
            "val/num_eos_tokens": sum_and_count(responses.finished),
            "rollout/truncated": sum_and_count(~responses.finished),
            "rollout/response_length": sum_and_count(mask.sum(-1)),
        }
    )
    state.metrics["objective/kl_coef"] = state.kl_coef
    if config.kl_target is not None:  # Ziegler et al. 2019, section 2.2
        error = state.metrics["objective/kl"] / config.kl_target - 1
        step = min(max(error, -0.2), 0.2) * config.rollout_size / config.kl_horizon
        state.kl_coef *= 1 + step
    critic_only = state.rollout < config.critic_warmup
    state.rollout += 1
    return responses.rows, Trajectory(logps, values, advantages, returns, ref_logps, critic_only)
