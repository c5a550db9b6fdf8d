"""Batches from rollouts: what ppo trains on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.batches import total_steps
from data.errors import USAGE, InputError
from data.prompts import encode_prompts, load_prompts
from data.records import check_skipped, skipped_note
from data.splits import StepRows
from data.trees import Layout
from losses.base import Loss, Metric
from losses.ppo import PPOConfig
from models.checkpoint import check_room
from models.forward import ActorCritic, Policy
from models.layout import common_layout
from models.load import (
    check_tokenizer,
    check_vocabulary,
    load_causal_lm,
    load_critic,
    load_tokenizer,
    parameters,
)
from rollout.experience import Prompt, Rollouts
from rollout.sample import stop_ids
from rollout.score import Reward
from rollout.state import RolloutState
from rollout.steps import leave_early, rollout_steps
from runtime.checkpoints.identity import model_files, rows_hash
from runtime.config import Run
from runtime.guards.limits import check_repeats
from runtime.metrics import Totals, ratio_variance
from runtime.sources.base import Evaluation
from runtime.sources.heldout import evaluate_prompts
from runtime.sources.rewards import RewardPlan, plan_reward
from runtime.state import TrainState


@dataclass(frozen=True)
class PromptPlan:
    """See `runtime.sources.base.Plan`."""

    run: Run
    accelerator: Accelerator
    tokenizer: PreTrainedTokenizerBase
    train: Sequence[Prompt]
    heldout: Sequence[Prompt]
    on_pocket: bool  # the exact grader knows what is right
    reward: RewardPlan
    steps: int
    data: str

    def __post_init__(self) -> None:
        """Raise InputError unless the models take every prompt and the longest response to it."""
        models = [("--model", self.run.train.model), ("--reward", self._critic_from())]
        if self.ppo.ref_model is not None and self.ppo.needs_reference:
            models.append(("--ref_model", self.ppo.ref_model))
        longest = max(len(prompt.tokens) for prompt in [*self.train, *self.heldout])
        for flag, name in models:  # the reward model by itself is given texts, and cuts them
            check_room(longest, self.ppo.max_new_tokens, name, flag)

    @property
    def ppo(self) -> PPOConfig:
        config: PPOConfig = self.run.loss
        return config

    @property
    def reward_model(self) -> tuple[str, PreTrainedTokenizerBase] | None:
        """None: a function, or the grader."""
        return self.reward.model

    @property
    def summary(self) -> list[str]:
        size, batch_size = self.ppo.rollout_size, self.run.train.batch_size
        rollouts = math.ceil(self.steps / (self.ppo.ppo_epochs * (size // batch_size)))
        return [
            f"data: {self.data}",
            f"plan: {rollouts} rollouts of {size} responses, {self.ppo.ppo_epochs} epochs over each"
            f" in steps of {batch_size}: {self.steps} optimizer steps",
        ]

    @property
    def end_tokens(self) -> tuple[int, ...]:
        return stop_ids(self.tokenizer, self.ppo.stop_tokens)

    def preview(self) -> str:
        lines = []
        for number, prompt in enumerate(self.train[:2], 1):
            lines.append(f"prompt {number}: {len(prompt.tokens)} tokens")
            lines.append(f"    {self.tokenizer.decode(prompt.tokens)!r}")
        return "\n".join(lines)

    @cached_property
    def identity(self) -> dict[str, str]:
        reward = self.reward_model
        return {
            "data": rows_hash([*self.train, *self.heldout]),
            "model": model_files(self.run.train.model),
            "ref_model": model_files(self.ppo.ref_model),
            "reward": model_files(reward[0] if reward else None),
        }

    def initial_rollout_state(self) -> RolloutState:
        return RolloutState(kl_coef=self.ppo.kl_coef)

    def load(self) -> PromptModels:
        config, device = self.run.train, self.accelerator.device
        options: Any = {
            "dtype": config.dtype,
            "gradient_checkpointing": config.gradient_checkpointing,
        }
        # ---- reward, policy and critic
        reward = self.reward.load(config, device)
        policy = load_causal_lm(config.model, **options).to(device)
        self._check_policy(policy)
        critic_from = self._critic_from()
        critic = load_critic(critic_from, **options).to(device)

        # ---- the frozen reference, where there is one; one layout that all of them take
        models: list[Any] = [("--model", policy, "causal_lm"), ("the critic", critic, "token_cls")]
        if self.ppo.needs_reference:
            name, flag = self.ppo.ref_model or config.model, "--ref_model"
            frozen: Any = load_causal_lm(name, dtype=config.dtype, flag=flag).to(device)
            models.append(("the reference", frozen.requires_grad_(False), "causal_lm"))
        layout, (actor, _, *references), how = common_layout(models, config.layout)
        assert isinstance(actor, Policy)
        entropy = self.ppo.entropy_coef > 0
        trained = ActorCritic(actor, critic, temperature=self.ppo.temperature, entropy=entropy)
        description = (
            f"{config.model}, {parameters(policy)}, {how}; reward {self.reward.name};"
            f" critic from {critic_from}{self._other_stop_tokens(policy)}"
        )
        reference = references[0] if references else None
        return PromptModels(self, trained, policy, reference, reward, layout, description)

    def _check_policy(self, policy: PreTrainedModel) -> None:
        """Raise InputError unless the policy has an embedding of every token of the prompts."""
        token_ids = {token for prompt in [*self.train, *self.heldout] for token in prompt.tokens}
        check_vocabulary(policy, token_ids, f"--model {self.run.train.model}")

    def _critic_from(self) -> str:
        """The reward model where it takes the policy's tokens (N+, 2.2), else the policy."""
        if self.reward_model is None:
            return self.run.train.model
        name, tokenizer = self.reward_model
        # It may know more tokens: a reward model's <|pad|> is one that the policy does not have.
        takes = self.tokenizer.get_vocab().items() <= tokenizer.get_vocab().items()
        return name if takes else self.run.train.model

    def _other_stop_tokens(self, policy: PreTrainedModel) -> str:
        """A remark on stop tokens of the model's generation_config, which ppo does not read."""
        ends: Any = getattr(policy.generation_config, "eos_token_id", None) or []
        ends = ends if isinstance(ends, list) else [ends]
        others = [e for e in ends if isinstance(e, int) and e not in self.end_tokens]
        names = ",".join(filter(None, self.tokenizer.convert_ids_to_tokens(others)))
        return f"; generate() would also stop at {names}, ppo by --stop_tokens" if names else ""


@dataclass(frozen=True)
class PromptModels:
    """See `runtime.sources.base.Models`."""

    plan: PromptPlan
    trained: ActorCritic
    saved: PreTrainedModel  # the policy, which also samples
    reference: nn.Module | None
    reward: Reward
    layout: Layout
    description: str

    @property
    def beside(self) -> Mapping[str, PreTrainedModel]:
        return {"critic": self.trained.critic}

    @property
    def learning_rates(self) -> Mapping[str, float]:
        rate = self.plan.ppo.critic_learning_rate
        return {} if rate is None else {"critic.": rate}

    def feed(self, trained: nn.Module, state: TrainState, directory: Path) -> PromptFeed:
        plan, accelerator, reference = self.plan, self.plan.accelerator, self.reference
        if reference is not None:
            reference = accelerator.prepare_model(reference, evaluation_mode=True)

        def reduce(metrics: dict[str, Metric]) -> dict[str, float]:
            totals = Totals()
            totals.add(metrics)
            return totals.reduce(accelerator)

        rollouts = Rollouts(
            accelerator,
            accelerator.unwrap_model(trained),
            self.saved,
            reference,
            self.reward,
            plan.tokenizer,
            plan.ppo,
            self.layout,
            plan.run.train.max_tokens,
            reduce,
        )
        assert state.rollout is not None
        return PromptFeed(plan, rollouts, state.rollout)


@dataclass(frozen=True)
class PromptFeed:
    """See `runtime.sources.base.Feed`."""

    plan: PromptPlan
    rollouts: Rollouts
    state: RolloutState  # the run's own: steps change it

    def steps(self, start: int) -> Iterator[StepRows]:
        """From where the rollout state stands, which must be that after `start` steps."""
        return rollout_steps(
            self.rollouts,
            self.plan.train,
            batch_size=self.plan.run.train.batch_size,
            steps=self.plan.steps,
            seed=self.plan.run.train.seed,
            state=self.state,
        )

    def after_step(self, metrics: dict[str, float]) -> dict[str, float]:
        """The rollout's own metrics, with its first step; and it is left if that went too far."""
        present = self.state.experience
        first = present is not None and self.state.next_minibatch == 1
        of_rollout = present.metrics if present is not None and first else {}
        leave_early(self.state, self.plan.ppo, metrics)
        return of_rollout | {"val/ratio_var": ratio_variance(metrics)}

    def epoch(self, step: int) -> float:
        return self.state.number * self.plan.ppo.rollout_size / len(self.plan.train)

    def evaluate(self) -> Evaluation:
        plan = self.plan
        return evaluate_prompts(
            self.rollouts, plan.heldout, seed=plan.run.train.seed, on_pocket=plan.on_pocket
        )


def plan_prompts(run: Run, loss: Loss, accelerator: Accelerator) -> PromptPlan:
    """Read and check the prompts and the flags that depend on one another.

    Raises:
        InputError: sizes that do not divide, no reward, prompts that cannot be read.
    """
    config, ppo = run.train, run.loss
    size, batch_size = ppo.rollout_size, config.batch_size
    for name, number, divisor in (
        ("--rollout_size", size, batch_size),
        ("--batch_size", batch_size, accelerator.num_processes),
    ):
        if number % divisor:
            raise InputError(f"{name} {number} is not a multiple of {divisor}", USAGE)
    if ppo.critic_warmup and config.weight_decay:
        raise InputError(
            "--weight_decay would shrink the policy while --critic_warmup holds it; give one",
            USAGE,
        )
    source = ppo.prompts or config.data
    reward = plan_reward(ppo.reward, source)
    tokenizer = load_tokenizer(config.model, chat_template=config.chat_template)
    stop_ids(tokenizer, ppo.stop_tokens)  # refuses what is no token of the tokenizer
    options = config.reading
    *parts, data = load_prompts(
        source, config.seed, eval_data=config.eval_data, options=options, taken=reward.taken
    )
    prompts = []
    no_room, skipped = 0, list[InputError]()
    for records in parts:
        encoded = encode_prompts(records, tokenizer, config.max_length, options)
        check_skipped(encoded.skipped, len(encoded.prompts), source)
        reward.check([record for record, _ in encoded.prompts], config)
        prompts.append([Prompt(r.prompt, ids, r.columns) for r, ids in encoded.prompts])
        no_room, skipped = no_room + encoded.no_room, skipped + encoded.skipped
    train, heldout = prompts
    data = "; ".join([data, *skipped_note(skipped)])
    if no_room:
        data += f"; {no_room:,} prompts have no room in --max_length {config.max_length}"
    if ppo.ref_model is not None and ppo.needs_reference:
        check_tokenizer(ppo.ref_model, tokenizer, set(range(len(tokenizer))))
    check_repeats("--rollout_size", size, len(train))
    rollouts = total_steps(len(train), size, config.epochs, None)
    steps = config.max_steps or rollouts * ppo.ppo_epochs * (size // batch_size)
    return PromptPlan(
        run, accelerator, tokenizer, train, heldout, source == "pocket", reward, steps, data
    )
