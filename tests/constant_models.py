"""Causal LMs whose next token has the same distribution wherever they are: the end token one
probability, every other token an equal part of the rest. What is sampled from them, and the KL
between two of them, can be worked out by hand."""

from dataclasses import dataclass
from math import exp, log

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from data.pocket import BASE_DIR


@dataclass(frozen=True)
class Constant:
    """Log-probabilities of the end token and of each other one."""

    end: float
    other: float


def make_constant(folder, end_logit):
    """Save one, with pocket's tokenizer, and say what it gives."""
    tokenizer = AutoTokenizer.from_pretrained(BASE_DIR)
    vocabulary = len(tokenizer)
    sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    ids = dict(vocab_size=vocabulary, bos_token_id=None, eos_token_id=tokenizer.eos_token_id)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("phi", **sizes, **ids))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.final_layernorm.bias.fill_(1.0)  # every hidden state is all ones
        model.lm_head.bias[tokenizer.eos_token_id] = end_logit  # phi's head has a bias
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    total = log(exp(end_logit) + vocabulary - 1)
    return Constant(end_logit - total, -total)


def log_ratio(policy, base, tokens, finished):
    """log π - log base of a response of so many tokens; `finished`: the last is the end token.

    Linear in both, so that their means over responses give the mean.
    """
    return (policy.other - base.other) * (tokens - finished) + (policy.end - base.end) * finished
