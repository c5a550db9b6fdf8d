"""--mixed_precision bf16: what samples a response rounds like what looks back at it."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from rollouts import make_rollouts
from tolerances import loose

from data.pocket import heldout_prompts
from losses.ppo import PPOConfig
from models.forward import ActorCritic, Policy
from models.load import load_causal_lm, load_critic, load_tokenizer
from rollout import experience
from rollout.experience import Prompt, evaluate_responses, respond

CONFIG = PPOConfig(max_new_tokens=24)


@pytest.fixture
def rollouts():
    """Of the pocket model, prepared as the loop does it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    model, critic = (load("pocket", dtype="float32") for load in (load_causal_lm, load_critic))
    module = accelerator.prepare(ActorCritic(Policy(model), critic, temperature=1.0))
    made = make_rollouts(
        CONFIG, reference=None, reward=lambda prompts, responses: [0.0] * len(prompts)
    )
    tokenizer = load_tokenizer("pocket")
    yield replace(
        made, accelerator=accelerator, actor_critic=module, model=model, tokenizer=tokenizer
    )
    AcceleratorState._reset_state(reset_partial_state=True)


class WithoutAutocast:
    def __init__(self, accelerator):
        self.device, self.autocast = accelerator.device, nullcontext


def apart(rollouts, monkeypatch):
    """|log-prob when sampled - log-prob looked up| of every token, and the head's dtypes."""
    sampled, dtypes = [], set()

    def recorded(*args, **options):
        sampled.extend(real(*args, **options))
        return sampled

    def note(module, inputs, logits):
        dtypes.add(logits.dtype)

    tokens = [(text, rollouts.tokenizer(text).input_ids) for text in heldout_prompts()]
    hook = rollouts.model.get_output_embeddings().register_forward_hook(note)
    real = experience.sample
    with monkeypatch.context() as patch:
        patch.setattr(experience, "sample", recorded)
        responses = respond(
            rollouts, [Prompt(*prompt) for prompt in tokens], range(len(tokens)), seed=0
        )
    hook.remove()
    logps = evaluate_responses(rollouts, responses).logps.double()
    pairs = zip(sampled, logps, strict=True)
    return torch.cat([(torch.tensor(s.logps) - x[: len(s.tokens)]).abs() for s, x in pairs]), dtypes


def test_sampled_and_recomputed_log_probs_agree_as_well_as_bfloat16_allows(rollouts, monkeypatch):
    """F1: both forwards make the same roundings, all but those that the cache moves."""
    found, dtypes = apart(rollouts, monkeypatch)
    assert dtypes == {torch.bfloat16} and found.max() < loose(torch.bfloat16)
    without = replace(rollouts, accelerator=WithoutAutocast(rollouts.accelerator))
    other, dtypes = apart(without, monkeypatch)
    assert dtypes == {torch.float32} and found.mean() < other.mean() / 10
