"""Random-weight models of real families, built from a config, and rows for them: no download."""

import random
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from data.row_table import Row

VOCABULARY = 64
SHAPE = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    # inside the vocabulary, or transformers warns
    **dict(bos_token_id=1, eos_token_id=2, pad_token_id=0),
)
WINDOW = dict(sliding_window=4)  # shorter than the rows below
MIXED = dict(WINDOW, layer_types=["sliding_attention", "full_attention", "sliding_attention"])
SMALL_OPT = dict(ffn_dim=48, word_embed_proj_dim=32, num_key_value_heads=None)
SMALL_GPT2 = dict(n_embd=32, n_layer=3, n_head=4, n_positions=64)

FAMILIES = {
    "llama": ("llama", {}),
    "qwen3": ("qwen3", dict(head_dim=8)),
    "gpt2": ("gpt2", SMALL_GPT2),
    "gpt_neox": ("gpt_neox", {}),
    "gemma": ("gemma", dict(head_dim=8)),
    "opt": ("opt", SMALL_OPT),
    "phi3": ("phi3", {}),
    "phi, whose head has a bias": ("phi", {}),
    "mistral with a window": ("mistral", WINDOW),
    "gemma3 with a window in some layers": ("gemma3_text", dict(MIXED, head_dim=8)),
    "qwen2 with a window in some layers": (
        "qwen2",
        dict(WINDOW, use_sliding_window=True, max_window_layers=1),
    ),
}


def make_model(family="llama", dtype=torch.float64, seed=0, **more):
    """An untrained model of the family, in eval mode."""
    name, options = FAMILIES.get(family, (family, {}))
    torch.manual_seed(seed)
    config = AutoConfig.for_model(name, **(SHAPE | options | more))
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def make_head(kind, family="llama", dtype=torch.float64, **more):
    """An untrained sequence or token classifier with one output."""
    name, options = FAMILIES.get(family, (family, {}))
    torch.manual_seed(1)
    config = AutoConfig.for_model(name, **(SHAPE | options | {"num_labels": 1} | more))
    classes = {
        "sequence": AutoModelForSequenceClassification,
        "token": AutoModelForTokenClassification,
    }
    return classes[kind].from_config(config, dtype=dtype).eval()


class _StayFloat64(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.Tensor.to, torch.Tensor.float) and args[0].dtype == torch.float64:
            asked = [*args[1:], kwargs.get("dtype"), func]
            if torch.float32 in asked or func is torch.Tensor.float:
                return args[0]
        return func(*args, **kwargs)


@contextmanager
def float64_throughout():
    """Transformers' norms compute in float32 even in a float64 model; here they do not."""
    with _StayFloat64():
        yield


def make_rows(count, *, responses=2, seed=0, shared=3):
    """Rows of unequal lengths, of tokens 3 and up; the responses often share their first tokens."""
    draw = random.Random(seed)

    def tokens(n):
        return [draw.randrange(3, VOCABULARY) for _ in range(n)]

    rows = []
    for index in range(count):
        prompt, common = tokens(draw.randint(1, 9)), tokens(draw.randint(0, shared))
        own = [common + tokens(draw.randint(1, 8)) + [2] for _ in range(responses)]
        ends, characters = [True] * responses, [draw.randint(5, 40) for _ in own]
        rows.append(Row(index, prompt, own, ends, characters))
    return rows


def flat_grad(model):
    """All gradients as one vector; zeros for what has none."""
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return torch.cat([g.flatten() for g in grads])


def relative_error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()
