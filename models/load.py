"""Models and tokenizers from a directory or the hub, checked and ready to train."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from data.errors import UNAVAILABLE, USAGE, InputError
from models.locate import locate

Loaded = TypeVar("Loaded")
HEAD = "score.weight"  # of a sequence classifier
HEADS = ("score", "classifier")  # of a token classifier

transformers_logging.disable_progress_bar()  # a run has one bar, its own
transformers_logging.set_verbosity_error()  # what matters of its warnings is an InputError here


def load_tokenizer(name: str, flag: str = "--model") -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory or hub id; InputError if it cannot be had."""

    def load(where: str) -> PreTrainedTokenizerBase:
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                where, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            if os.path.isdir(where) and not os.path.exists(os.path.join(where, "tokenizer.json")):
                raise ValueError("no tokenizer.json in this directory") from error
            raise
        return tokenizer

    return _load(name, flag, "its tokenizer", load)


def load_causal_lm(
    name: str, *, dtype: str, gradient_checkpointing: bool = False, flag: str = "--model"
) -> PreTrainedModel:
    """A causal LM to train or to compare with; InputError if it cannot be had."""
    model, _ = _load_model(AutoModelForCausalLM, name, flag, dtype, may_miss=())
    return _ready(model, gradient_checkpointing)


def load_scorer(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    dtype: str,
    seed: int = 0,
    gradient_checkpointing: bool = False,
    flag: str = "--model",
) -> PreTrainedModel:
    """A sequence classifier with one label: a reward model, or a causal LM with a new head.

    A new head is drawn from `seed`, normal with standard deviation 1 / sqrt(d + 1), so that scores
    start around 0 with variance 1 for hidden states of unit size ("The N+ Implementation Details of
    RLHF with PPO", Huang et al. 2024). The tokenizer's pad token is set to one that no response
    ends with, because transformers reads the score at the last token that is not the pad token.
    """
    model, missing = _load_model(
        AutoModelForSequenceClassification, name, flag, dtype, may_miss=(HEAD,), num_labels=1
    )
    if HEAD in missing:
        weight = model.get_parameter(HEAD)
        draw = torch.Generator().manual_seed(seed)
        start = torch.randn(weight.shape, generator=draw) / math.sqrt(weight.shape[1] + 1)
        with torch.no_grad():
            weight.copy_(start)
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        special = (tokenizer.unk_token_id, tokenizer.bos_token_id, *range(len(tokenizer)))
        pad = next(i for i in special if i is not None and i != tokenizer.eos_token_id)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return _ready(model, gradient_checkpointing)


def load_critic(name: str, *, dtype: str, gradient_checkpointing: bool = False) -> PreTrainedModel:
    """A token classifier with one label, from a reward model or a causal LM.

    A head that the files do not have starts at 0, so that the first values are 0 (N+, detail 2.2).
    """
    heads = tuple(f"{head}.{part}" for head in HEADS for part in ("weight", "bias"))
    model, missing = _load_model(
        AutoModelForTokenClassification, name, "critic", dtype, may_miss=heads, num_labels=1
    )
    with torch.no_grad():
        for key in missing:
            model.get_parameter(key).zero_()
    return _ready(model, gradient_checkpointing)


def _load_model(
    model_class: Any, name: str, flag: str, dtype: str, *, may_miss: tuple[str, ...], **options: Any
) -> tuple[PreTrainedModel, set[str]]:
    """The model, and which of `may_miss` its weight files do not have."""

    def load(where: str) -> tuple[PreTrainedModel, set[str]]:
        model, info = model_class.from_pretrained(
            where,
            dtype=getattr(torch, dtype),
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
            **options,
        )
        # Transformers would go on with random numbers in their place.
        for key in sorted(set(info["missing_keys"]) - set(may_miss)):
            raise ValueError(f"its weight files have no {key}")
        for key, found, wanted in sorted(info["mismatched_keys"]):
            shapes = f"{tuple(found)} in its weight files and {tuple(wanted)} by its config.json"
            raise ValueError(f"{key} is {shapes}")
        # The weights are the file's pages in memory: whoever overwrote it would undo the training.
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        return model, set(info["missing_keys"])

    return _load(name, flag, "it", load)


def _ready(model: PreTrainedModel, gradient_checkpointing: bool) -> PreTrainedModel:
    """In eval mode: all parameters learn, and no dropout is on anywhere.

    Dropout would make the policy's log-probs differ from the reference's and from the sampler's
    before any update, which is noise in every ratio that the losses are built from.
    """
    model.eval()
    if gradient_checkpointing:
        if hasattr(model, "activation_checkpointing_enable"):  # its name in later versions
            model.activation_checkpointing_enable()
        else:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        for module in model.modules():
            # Transformers checkpoints a layer only if the layer itself is in training mode; what is
            # inside it stays in eval mode, and the layer's own rates of dropout become 0.
            module.training = bool(getattr(module, "gradient_checkpointing", False))
            for name, value in vars(module).items():
                if module.training and "drop" in name and isinstance(value, float):
                    setattr(module, name, 0.0)
    return model


def _load(name: str, flag: str, what: str, load: Callable[[str], Loaded]) -> Loaded:
    where = locate(name, flag)
    try:
        return load(where)
    except SafetensorError as error:
        raise InputError(
            f"{flag} {name}: a weight file is cut short or damaged ({error}); get it again"
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")
        if os.path.isdir(where):
            raise InputError(f"{flag} {name}: {what} cannot be loaded: {reason}") from error
        raise InputError(
            f"{flag} {name}: no such directory, and the hub does not give it ({reason});"
            f" offline, run `hf download {name}` on a connected machine and pass the directory",
            UNAVAILABLE,
        ) from error


def check_vocabulary(model: PreTrainedModel, token_ids: set[int], flag: str) -> None:
    """Raise InputError if the model has no embedding for one of the token ids of the data."""
    embedding: Any = model.get_input_embeddings()
    size = len(embedding.weight)
    if max(token_ids) >= size:
        raise InputError(
            f"{flag}: the tokenizer makes token {max(token_ids)} of the data, and the model knows"
            f" {size} tokens; they do not belong together"
        )


def check_tokenizer(
    ref_model: str, tokenizer: PreTrainedTokenizerBase, token_ids: set[int]
) -> None:
    """Raise InputError unless the token ids of the data mean the same to the reference."""
    other = load_tokenizer(ref_model, "--ref_model")
    ids = sorted(token_ids)
    for token, ours, theirs in zip(
        ids, *(t.convert_ids_to_tokens(ids) for t in (tokenizer, other)), strict=True
    ):
        if ours != theirs:
            raise InputError(
                f"--ref_model {ref_model}: its vocabulary is another one (token {token} is"
                f" {theirs!r} there, and {ours!r} in the model to be trained)",
                USAGE,
            )


def parameters(model: PreTrainedModel) -> str:
    """Such as `134.5M parameters`."""
    count: Any = sum(p.numel() for p in model.parameters())
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit} parameters"
    return f"{count} parameters"
