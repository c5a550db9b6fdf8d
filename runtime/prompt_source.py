"""Batches from rollouts: what ppo trains on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from data.batches import total_steps
from data.errors import USAGE, InputError
from data.prompts import encode_prompts, load_prompts
from data.trees import TreeBatch
from losses.base import Loss, Metric, masked_sum, sum_and_count
from losses.forward import ActorCritic, Policy
from losses.ppo import PPOConfig
from rollout.experience import Prompt, Rollouts, RolloutState, evaluate_responses, respond
from rollout.sample import stop_ids
from rollout.score import Reward, load_reward
from rollout.steps import rollout_steps
from runtime.config import TrainConfig
from runtime.inputs import parse_columns
from runtime.layout import common_layout
from runtime.metrics import Totals
from runtime.models import (
    check_tokenizer,
    check_vocabulary,
    load_causal_lm,
    load_critic,
    load_tokenizer,
    parameters,
)
from runtime.rewards import pocket_reward, reward_model

HELDOUT_SAMPLES = 256  # at least, over the held-out prompts
SHOWN_SAMPLES = 5


class PromptSource:
    """See `runtime.source.Source`."""

    def __init__(
        self, config: TrainConfig, loss: Loss, loss_config: PPOConfig, accelerator: Accelerator
    ) -> None:
        self.config, self.ppo, self.accelerator = config, loss_config, accelerator
        assert config.batch_size is not None
        size, self.batch_size = loss_config.rollout_size, config.batch_size
        for name, number, by in (
            ("--rollout_size", size, self.batch_size),
            ("--batch_size", self.batch_size, accelerator.num_processes),
        ):
            if number % by:
                raise InputError(f"{name} {number} is not a multiple of {by}", USAGE)
        if loss_config.critic_warmup and config.weight_decay:
            raise InputError(
                "--weight_decay would shrink the policy while --critic_warmup holds it; give one",
                USAGE,
            )
        self.on_pocket = (loss_config.prompts or config.data) == "pocket"
        self.reward_name = loss_config.reward or ("pocket's grader" if self.on_pocket else None)
        if self.reward_name is None:
            raise InputError(
                "--reward is missing: train one with --loss reward on this data and give its"
                " final/ directory, or name a function as module:function",
                USAGE,
            )
        reward = loss_config.reward
        self.reward_model = None  # its name and tokenizer; a function needs none
        if reward is not None and ":" not in reward:
            self.reward_model = reward, load_tokenizer(reward, "--reward")
        self.tokenizer = load_tokenizer(config.model)
        stop_ids(self.tokenizer, loss_config.stop_tokens)  # or what is wrong with them
        where = loss_config.prompts or config.data
        columns = parse_columns(config.columns)
        asked = load_prompts(where, config.seed, eval_data=config.eval_data, columns=columns)
        train, heldout, self.data = asked
        self.train, self.heldout = (
            [Prompt(*p) for p in encode_prompts(part, self.tokenizer, config.max_length)]
            for part in (train, heldout)
        )
        dropped = len(train) + len(heldout) - len(self.train) - len(self.heldout)
        if dropped:
            room = f"have no room for a response in --max_length {config.max_length}"
            self.data += f"; {dropped:,} prompts {room}"
        if loss_config.ref_model is not None and loss_config.needs_reference:
            check_tokenizer(loss_config.ref_model, self.tokenizer, set(range(len(self.tokenizer))))
        self.per_rollout = loss_config.ppo_epochs * (size // self.batch_size)
        rollouts = total_steps(len(self.train), size, config.epochs, None)
        self.steps = config.max_steps or rollouts * self.per_rollout
        self.told = [
            f"data: {self.data}",
            f"plan: {math.ceil(self.steps / self.per_rollout)} rollouts of {size} responses,"
            f" {loss_config.ppo_epochs} epochs over each in steps of {self.batch_size}:"
            f" {self.steps} optimizer steps",
        ]
        self.state = RolloutState(kl_coef=loss_config.kl_coef)
        self.samples: list[dict[str, Any]] = []

    def epoch(self, step: int) -> float:
        return math.ceil(step / self.per_rollout) * self.ppo.rollout_size / len(self.train)

    def preview(self) -> str:
        lines = []
        for number, prompt in enumerate(self.train[:2], 1):
            lines.append(f"prompt {number}: {len(prompt.tokens)} tokens")
            lines.append(f"    {self.tokenizer.decode(prompt.tokens)!r}")
        return "\n".join(lines)

    def load(self) -> tuple[nn.Module, str]:
        config, device = self.config, self.accelerator.device
        self.reward = self._reward()
        options: Any = {
            "dtype": config.dtype,
            "gradient_checkpointing": config.gradient_checkpointing,
        }
        self.model = load_causal_lm(config.model, **options).to(device)
        used = {token for prompt in self.train + self.heldout for token in prompt.tokens}
        check_vocabulary(self.model, used, f"--model {config.model}")
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", math.inf)
        longest = max(len(prompt.tokens) for prompt in self.train + self.heldout)
        if longest + self.ppo.max_new_tokens > limit:
            raise InputError(
                f"--max_new_tokens {self.ppo.max_new_tokens}: the longest prompt has {longest}"
                f" tokens and --model {config.model} takes {limit}; lower it, or --max_length",
                USAGE,
            )
        critic_from = self._critic_from()
        critic = load_critic(critic_from, **options).to(device)
        models: list[Any] = [("--model", self.model, "logps"), ("the critic", critic, "value")]
        if self.ppo.needs_reference:
            name, flag = self.ppo.ref_model or config.model, "--ref_model"
            frozen = load_causal_lm(name, dtype=config.dtype, flag=flag).to(device)
            models.append(("the reference", frozen.requires_grad_(False), "logps"))
        self.layout, (policy, _, *references), told = common_layout(models, config.layout)
        assert isinstance(policy, Policy)
        self.reference: nn.Module | None = references[0] if references else None
        told = f"{config.model}, {parameters(self.model)}, {told}"
        told += f"; reward {self.reward_name}; critic from {critic_from}{self._other_ends()}"
        ppo = self.ppo
        module = ActorCritic(
            policy, critic, temperature=ppo.temperature, entropy=ppo.entropy_coef > 0
        )
        return module, told

    def _critic_from(self) -> str:
        """The reward model where it takes the policy's tokens (N+, 2.2), else the policy."""
        if self.reward_model is None:
            return self.config.model
        name, tokenizer = self.reward_model
        same = tokenizer.get_vocab() == self.tokenizer.get_vocab()
        return name if same else self.config.model

    def _other_ends(self) -> str:
        """Stop tokens of the model's generation_config, which is not obeyed (F4): told, then."""
        ends: Any = getattr(self.model.generation_config, "eos_token_id", None) or []
        ours = stop_ids(self.tokenizer, self.ppo.stop_tokens)
        others = [end for end in ([ends] if isinstance(ends, int) else ends) if end not in ours]
        names = ",".join(filter(None, self.tokenizer.convert_ids_to_tokens(others)))
        return f"; generate() would also stop at {names}, ppo by --stop_tokens" if names else ""

    def _reward(self) -> Reward:
        config = self.config
        if self.ppo.reward is None:
            return pocket_reward
        if self.reward_model is None:
            return load_reward(self.ppo.reward)
        spec, tokenizer = self.reward_model
        return reward_model(
            spec,
            tokenizer,
            dtype=config.dtype,
            device=self.accelerator.device,
            layout=config.layout,
            max_tokens=config.max_tokens,
            max_length=config.max_length,
        )

    def start(self, policy: nn.Module, directory: Path) -> None:
        if self.reference is not None:
            self.reference = self.accelerator.prepare_model(self.reference, evaluation_mode=True)
        self.rollouts = Rollouts(
            self.accelerator,
            self.accelerator.unwrap_model(policy),
            self.model,
            self.reference,
            self.reward,
            self.tokenizer,
            self.ppo,
            self.layout,
            self.config.max_tokens,
            self._reduce,
        )

    def _reduce(self, metrics: dict[str, Metric]) -> dict[str, float]:
        totals = Totals()
        totals.add(metrics)
        return totals.reduce(self.accelerator)

    def batches(self) -> Iterator[list[TreeBatch]]:
        return rollout_steps(
            self.rollouts,
            self.train,
            batch_size=self.batch_size,
            steps=self.steps,
            seed=self.config.seed,
            state=self.state,
        )

    def after_step(self, metrics: dict[str, float]) -> dict[str, float]:
        self.state.last_step = metrics
        told, self.state.metrics = self.state.metrics, {}
        return told | {"val/ratio_var": ratio_variance(metrics)}

    def evaluate(self) -> dict[str, float]:
        """Sampled with the same random numbers every time, at the training temperature."""
        ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
        times = math.ceil(HELDOUT_SAMPLES / len(self.heldout))
        numbers = range(rank, times * len(self.heldout), ranks)
        prompts = [self.heldout[i % len(self.heldout)] for i in numbers]
        responses = respond(self.rollouts, prompts, list(numbers), seed=self.config.seed)
        looked = evaluate_responses(self.rollouts, responses)
        lengths = [len(row.responses[0]) for row in responses.rows]
        metrics = {
            "reward": sum_and_count(responses.scores),
            "response_length": sum_and_count(responses.scores.new_tensor(lengths)),
            "truncated": sum_and_count(~responses.finished),
        }
        if self.reference is not None:
            metrics["kl"] = sum_and_count(masked_sum(looked.logps - looked.ref_logps, looked.mask))
        if self.on_pocket:
            right = pocket_reward(responses.prompts, responses.texts)
            metrics["success"] = sum_and_count(responses.scores.new_tensor(right))
        self.samples = [
            {"prompt": prompt, "response": text, "score": score}
            for prompt, text, score in zip(
                responses.prompts, responses.texts, responses.scores.tolist(), strict=True
            )
        ][:SHOWN_SAMPLES]
        return self._reduce(metrics)


def ratio_variance(metrics: dict[str, float]) -> float:
    """Variance of the ratio over all tokens of a step, from the moments about 1 that add up."""
    return max(metrics["val/ratio_minus_1_squared"] - (metrics["val/ratio"] - 1) ** 2, 0.0)
