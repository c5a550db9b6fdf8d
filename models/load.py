"""Models and tokenizers from a directory or the hub, checked and ready to train."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from data.errors import USAGE, InputError
from data.files import read_small
from models.checkpoint import attempt, missing_attention, read_config
from models.pad import give_pad_token

HEAD = "score.weight"  # of a sequence classifier
HEADS = ("score", "classifier")  # of a token classifier
OTHER_HEADS = re.compile(r"(^|\.)(lm_head|embed_out|score|classifier|v_head|value_head)(\.|$)")
# What older versions of transformers kept in files though it is computed.
BUFFERS = re.compile(r"(inv_freq|masked_bias|attn\.bias|attention\.bias|position_ids)$")

transformers_logging.disable_progress_bar()  # a run has one bar, its own
transformers_logging.set_verbosity_error()  # what matters of its warnings is an InputError here


def load_tokenizer(
    name: str, flag: str = "--model", *, chat_template: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory or hub id; InputError if either cannot be had.

    It is the first that a run reads of a model, so what cannot be trained is refused here.
    `chat_template`: a file whose template takes the place of the tokenizer's own.
    """
    read_config(name, flag)
    tokenizer: PreTrainedTokenizerBase = attempt(name, flag, "its tokenizer", tokenizer_at)
    if chat_template is not None:
        who, path = f"--chat_template {chat_template}", Path(os.path.expanduser(chat_template))
        tokenizer.chat_template = read_small(path, who, "save the template as UTF-8")
    return tokenizer


def tokenizer_at(where: str) -> PreTrainedTokenizerBase:
    """The tokenizer in a directory or on the hub; raises what transformers raises."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            where, trust_remote_code=False
        )
    except Exception as error:
        if os.path.isdir(where) and not os.path.exists(os.path.join(where, "tokenizer.json")):
            reason = "no tokenizer.json in this directory"
            if os.path.exists(os.path.join(where, "tokenizer.model")):
                reason += (
                    ", and its tokenizer.model needs other packages: pip install sentencepiece"
                    " tiktoken protobuf"
                )
            raise ValueError(reason) from error
        raise
    text = tokenizer.decode(list(range(min(len(tokenizer), 3000))))
    first, *again = (tokenizer(text, verbose=False)["input_ids"] for _ in range(3))
    if any(ids != first for ids in again):
        reason = (
            "it gives other tokens each time (dropout in its tokenizer.json?); set that to null"
        )
        raise ValueError(reason)
    return tokenizer


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
    new_head: bool = True,
) -> PreTrainedModel:
    """A sequence classifier with one label: a reward model, or a causal LM with a new head.

    Without `new_head` the files must have one: a judge with a head drawn at random is none.

    A new head is drawn from `seed`, normal with standard deviation 1 / sqrt(d + 1), so that scores
    start around 0 with variance 1 for hidden states of unit size ("The N+ Implementation Details of
    RLHF with PPO", Huang et al. 2024). Model and tokenizer are given a pad token: models/pad.py.
    """
    model, missing = _load_model(
        AutoModelForSequenceClassification,
        name,
        flag,
        dtype,
        may_miss=(HEAD,) if new_head else (),
        num_labels=1,
    )
    if HEAD in missing:
        weight = model.get_parameter(HEAD)
        draw = torch.Generator().manual_seed(seed)
        start = torch.randn(weight.shape, generator=draw) / math.sqrt(weight.shape[1] + 1)
        with torch.no_grad():
            weight.copy_(start)
    give_pad_token(tokenizer, model)
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
    read_config(name, flag)

    def load(where: str) -> tuple[PreTrainedModel, set[str]]:
        replaced = missing_attention(where)
        from_pretrained = partial(_with_torch_attention, model_class)
        model, info = (from_pretrained if replaced else model_class.from_pretrained)(
            where,
            dtype=getattr(torch, dtype),
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
            **options,
        )
        if replaced:
            model.replaced_attention = replaced
        # Transformers would go on with random numbers in their place.
        for key in sorted(set(info["missing_keys"]) - set(may_miss)):
            raise ValueError(f"its weight files have no {key}")
        # And without a word leave out what config.json does not have: a bias, the last layers.
        for key in sorted(info["unexpected_keys"]):
            if _is_of(model, key):
                raise ValueError(f"its weight files have {key}, which its config.json does not")
        model.left_out = sorted(_parts(info["unexpected_keys"]))
        for key, found, wanted in sorted(info["mismatched_keys"]):
            shapes = f"{tuple(found)} in its weight files and {tuple(wanted)} by its config.json"
            raise ValueError(f"{key} is {shapes}")
        for key, parameter in model.named_parameters():
            if not parameter.isfinite().all():
                raise ValueError(f"its weight files have NaN or infinity in {key}")
        # The weights are the file's pages in memory: whoever overwrote it would undo the training.
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        return model, set(info["missing_keys"])

    return attempt(name, flag, "it", load)


def _is_of(model: PreTrainedModel, key: str) -> bool:
    """Whether a weight that the model does not have is of a part that it has.

    Such as a bias of one of its projections, or a layer more; not the head of another task.
    """
    if BUFFERS.search(key):
        return False
    own = {_any_layer(name) for name, _ in model.named_modules()} - {""}
    module = _any_layer(key).rpartition(".")[0]
    # files of a bare model lack its name (model., transformer.), those of others may have it
    prefixes = [f"{child}." for child, _ in model.named_children()]
    names = {module, *(p + module for p in prefixes), *(module.removeprefix(p) for p in prefixes)}
    return bool(names & own)


def _parts(keys: Iterable[str]) -> set[str]:
    """The parts of a model that weights are of, but heads, which are another task's."""
    found = {re.split(r"\.\d+\.", key)[0].removesuffix(".weight") for key in keys}
    return {part for part in found if not OTHER_HEADS.search(part) and not BUFFERS.search(part)}


def _any_layer(key: str) -> str:
    """A name without the numbers of layers in it."""
    return re.sub(r"\.\d+(?=\.|$)", ".N", key)


def _with_torch_attention(model_class: Any, where: str, **options: Any) -> Any:
    """With SDPA whatever config.json asks for, or eager attention where the family has no other."""
    of_config = {key: options.pop(key) for key in ("num_labels",) if key in options}
    config = AutoConfig.from_pretrained(where, trust_remote_code=False, **of_config)
    config._attn_implementation = "sdpa"
    try:
        return model_class.from_pretrained(where, config=config, **options)
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
    config._attn_implementation = "eager"
    return model_class.from_pretrained(where, config=config, **options)


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


def check_vocabulary(model: PreTrainedModel, token_ids: Collection[int], flag: str) -> None:
    """Raise InputError if the model has no embedding for one of the token ids of the data."""
    embedding: Any = model.get_input_embeddings()
    size = len(embedding.weight)
    if max(token_ids) >= size:
        raise InputError(
            f"{flag}: the tokenizer makes token {max(token_ids)} of the data, and the model knows"
            f" {size} tokens; they do not belong together"
        )


def check_tokenizer(
    ref_model: str, tokenizer: PreTrainedTokenizerBase, token_ids: Collection[int]
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
    """Such as `134.5M parameters`; and which attention is used where config.json asks for other."""
    count: Any = sum(p.numel() for p in model.parameters())
    replaced = getattr(model, "replaced_attention", None)
    used = model.config._attn_implementation
    note = f", {used} attention in place of {replaced}" if replaced else ""
    if left_out := getattr(model, "left_out", None):
        note += f", without {', '.join(left_out[:3])}{' ...' * (len(left_out) > 3)} of its files"
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit} parameters{note}"
    return f"{count} parameters{note}"
