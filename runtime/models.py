"""Models and tokenizers from a directory or the hub, ready to train; how batches are laid out."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from data.encode import Row
from data.errors import NO_INPUT, UNAVAILABLE, USAGE, InputError
from data.pocket import BASE_DIR
from data.trees import Layout, pack
from losses.forward import Policy

Loaded = TypeVar("Loaded")

transformers_logging.disable_progress_bar()  # a run has one bar, its own
transformers_logging.set_verbosity_error()  # what matters of its warnings is an InputError here

# Logits that are more than a linear map of the hidden state: config fields that say so.
LOGIT_FIELDS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


def locate(name: str, flag: str = "--model") -> str:
    """The directory of a local model, or the hub id as given.

    Raises:
        InputError: `name` looks like a path and nothing is there.
    """
    if name == "pocket":
        return str(BASE_DIR)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise InputError(f"{flag} {name}: no config.json in this directory", NO_INPUT)
        return str(path.resolve())
    hub_id = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and name[0] not in "./~"
    if path.exists():
        raise InputError(f"{flag} {name}: a file, and a directory is needed", NO_INPUT)
    if not hub_id or (name.count("/") and path.parent.exists()):
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, near, n=1)
        guess = f"did you mean {path.parent / close[0]}?" if close else "check the path"
        raise InputError(f"{flag} {name}: no such directory; {guess}", NO_INPUT)
    return name


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
    """A causal LM to train, in eval mode: all parameters learn, and no dropout is on anywhere.

    Dropout would make the policy's log-probs differ from the reference's and from the sampler's
    before any update, which is noise in every ratio that the losses are built from.
    """

    def load(where: str) -> PreTrainedModel:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            where,
            dtype=getattr(torch, dtype),
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # told below, by name
            output_loading_info=True,
        )
        model: PreTrainedModel
        model, info = loaded
        # Transformers would go on with random numbers in their place.
        for key in sorted(info["missing_keys"]):
            raise ValueError(f"its weight files have no {key}")
        for key, found, wanted in sorted(info["mismatched_keys"]):
            shapes = f"{tuple(found)} in its weight files and {tuple(wanted)} by its config.json"
            raise ValueError(f"{key} is {shapes}")
        return model

    model = _load(name, flag, "it", load)
    model.eval()
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        for module in model.modules():
            # Transformers checkpoints a layer only if the layer itself is in training mode; what is
            # inside it stays in eval mode, without dropout.
            module.training = bool(getattr(module, "gradient_checkpointing", False))
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


def check_vocabulary(model: PreTrainedModel, used: set[int], flag: str) -> None:
    """Raise InputError if the model has no embedding for one of the token ids of the data."""
    embedding: Any = model.get_input_embeddings()
    size = len(embedding.weight)
    if max(used) >= size:
        raise InputError(
            f"{flag}: the tokenizer makes token {max(used)} of the data, and the model knows"
            f" {size} tokens; they do not belong together"
        )


def check_tokenizer(ref_model: str, tokenizer: PreTrainedTokenizerBase, used: set[int]) -> None:
    """Raise InputError unless the token ids of the data mean the same to the reference."""
    other = load_tokenizer(ref_model, "--ref_model")
    ids = sorted(used)
    for token, ours, theirs in zip(
        ids, *(t.convert_ids_to_tokens(ids) for t in (tokenizer, other)), strict=True
    ):
        if ours != theirs:
            raise InputError(
                f"--ref_model {ref_model}: its vocabulary is another one (token {token} is"
                f" {theirs!r} there, and {ours!r} in the model to be trained)",
                USAGE,
            )


def choose_layout(
    model: PreTrainedModel, wanted: Literal["auto", "tree", "rectangle"]
) -> tuple[Layout, bool, str]:
    """(layout, fused head?, a line for the user), by trying what the model takes on two rows.

    The padded rectangle with the model's own logits is what the others must agree with.
    """
    config = model.config.get_text_config()
    linear = all(getattr(config, field, None) in (None, 1.0) for field in LOGIT_FIELDS)
    tolerance = {torch.float64: 1e-5, torch.float32: 1e-3}.get(model.dtype, 0.15)
    with torch.no_grad():
        truth = _probe(model, "rectangle", fused=False)
    layouts: list[Layout] = ["rectangle"] if wanted == "rectangle" else ["tree", "rectangle"]
    reason = ""
    for layout in layouts:
        for fused in (True, False) if linear else (False,):
            try:
                with torch.no_grad():
                    error = (_probe(model, layout, fused=fused) - truth).abs().max().item()
            except (ValueError, RuntimeError, TypeError, KeyError, IndexError) as problem:
                reason = f"{type(problem).__name__}: {' '.join(str(problem).split())[:80]}"
                continue
            if error <= tolerance:
                head = "" if fused else ", logits by the model's own head"
                if layout == "tree":
                    return layout, fused, f"token trees{head}"
                why = "as asked" if wanted == "rectangle" else f"no token trees ({reason})"
                return layout, fused, f"padded rectangle, {why}{head}"
            reason = f"log-probs differ by {error:.1g}"
        if wanted == "tree":
            raise InputError(f"--layout tree: this model cannot take it ({reason})", USAGE)
    return "rectangle", False, f"padded rectangle, no token trees ({reason}), the model's own head"


def _probe(model: PreTrainedModel, layout: Layout, *, fused: bool) -> torch.Tensor:
    """Log-probs of two short rows with shared prompts and a shared first response token."""
    vocabulary = model.config.get_text_config().vocab_size
    ids = [3 + i % max(1, vocabulary - 4) for i in range(40)]
    rows = [
        Row(0, ids[:7], [ids[7:11], ids[7:8] + ids[20:25]], [True, True], [1, 1]),
        Row(1, ids[30:33], [ids[33:36], ids[12:18]], [True, True], [1, 1]),
    ]
    batch = pack(rows, layout=layout).to(model.device)
    logps: torch.Tensor = Policy(model, fused=fused)(batch)
    return logps.double()


def make_optimizer(
    model: PreTrainedModel, learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW (betas 0.9, 0.999, eps 1e-8), fused; weight decay on matrices only."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def parameters(model: PreTrainedModel) -> str:
    """Such as `134.5M parameters`."""
    count: Any = sum(p.numel() for p in model.parameters())
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit} parameters"
    return f"{count} parameters"
