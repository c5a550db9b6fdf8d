"""DPO in a plain PyTorch loop: of this project only two functions, and the shipped small model.

    python -m examples.dpo_in_40_lines

The loss starts at ln 2 = 0.6931, where policy and reference are the same, and falls from there.
"""

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from losses import dpo_loss, token_logprobs

BASE = Path(__file__).parents[1] / "data" / "pocket" / "base"
BETA, LEARNING_RATE, STEPS = 0.1, 5e-4, 20

# Prompt, chosen, rejected: the responses answer one question, and the first is preferred.
PAIRS = [
    ("Question: How do I hang a lantern?\nAnswer:", " Use a wool scarf.", " Use a brick."),
    ("Question: How do I light the stove?\nAnswer:", " Use a match.", " Use a wet sponge."),
    ("Question: How do I carry lemonade?\nAnswer:", " Take a plastic cup.", " Take a feather."),
    ("Question: How do I reach a high shelf?\nAnswer:", " Get a ladder.", " Get a spoon."),
]

tokenizer = AutoTokenizer.from_pretrained(BASE)
policy = AutoModelForCausalLM.from_pretrained(BASE)
optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE)


def response_logp(prompt: str, response: str) -> Tensor:
    """log π(response | prompt) in nats: a sum over the response's tokens and the end token."""
    prompt_ids = tokenizer(prompt, return_tensors="pt").input_ids
    response_ids = tokenizer(response + tokenizer.eos_token, return_tensors="pt").input_ids
    ids = torch.cat([prompt_ids, response_ids], dim=1)  # (1, L)
    hidden = policy.model(ids).last_hidden_state[0]  # (L, d)

    # The hidden state at one position predicts the token at the next.
    start = prompt_ids.shape[1]
    return token_logprobs(hidden[start - 1 : -1], policy.lm_head.weight, ids[0, start:]).sum()


def pair_logps() -> tuple[Tensor, Tensor]:
    """Log-probs of all chosen and of all rejected responses, (B,) each."""
    chosen = torch.stack([response_logp(prompt, chosen) for prompt, chosen, _ in PAIRS])
    rejected = torch.stack([response_logp(prompt, rejected) for prompt, _, rejected in PAIRS])
    return chosen, rejected


# The reference is the policy before its first update: its log-probs are needed only once.
with torch.no_grad():
    ref_chosen, ref_rejected = pair_logps()

# Every step takes all pairs: forward, the loss of each pair, their mean, backward, update.
for step in range(STEPS):
    chosen, rejected = pair_logps()
    loss = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=BETA).mean()
    print(f"step {step:2}  loss {loss.item():.4f}")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
