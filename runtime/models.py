"""Models and tokenizers from a directory or the hub, ready to train; how batches are laid out."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from data.encode import Row
from data.errors import BAD_DATA, NO_INPUT, UNAVAILABLE, USAGE, InputError
from data.pocket import BASE_DIR
from data.trees import Layout, pack
from losses.forward import Policy

Loaded = TypeVar("Loaded")

transformers_logging.disable_progress_bar()  # a run has one bar, its own

# Logits that are more than a linear map of the hidden state: config fields that say so.
LOGIT_FIELDS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


def locate(name: str) -> str:
    """The directory of a local model, or the hub id as given.

    Raises:
        InputError: `name` looks like a path and nothing is there.
    """
    if name == "pocket":
        return str(BASE_DIR)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise InputError(f"--model {name}: no config.json in this directory", NO_INPUT)
        return str(path.resolve())
    hub_id = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and name[0] not in "./~"
    if path.exists() or not hub_id or (name.count("/") and path.parent.exists()):
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, near, n=1)
        guess = f"; did you mean {path.parent / close[0]}?" if close else ""
        raise InputError(f"--model {name}: no such directory{guess}", NO_INPUT)
    return name


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory or hub id; InputError if it cannot be had."""
    return _load(name, lambda where: AutoTokenizer.from_pretrained(where, trust_remote_code=False))


def load_causal_lm(
    name: str, *, dtype: str, gradient_checkpointing: bool = False
) -> PreTrainedModel:
    """A causal LM to train, in eval mode: all parameters learn, and no dropout is on anywhere.

    Dropout would make the policy's log-probs differ from the reference's and from the sampler's
    before any update, which is noise in every ratio that the losses are built from.
    """
    model: PreTrainedModel = _load(
        name,
        lambda where: AutoModelForCausalLM.from_pretrained(
            where, dtype=getattr(torch, dtype), trust_remote_code=False
        ),
    )
    model.eval()
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        for module in model.modules():
            # Transformers checkpoints a layer only if the layer itself is in training mode; what is
            # inside it stays in eval mode, without dropout.
            module.training = bool(getattr(module, "gradient_checkpointing", False))
    return model


def _load(name: str, load: Callable[[str], Loaded]) -> Loaded:
    where = locate(name)
    try:
        return load(where)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        if os.path.isdir(where):
            raise InputError(f"--model {name}: cannot be loaded: {reason}", BAD_DATA) from error
        raise InputError(
            f"--model {name}: no such directory, and the hub does not give it ({reason[:150]}...);"
            f" offline, run `hf download {name}` on a connected machine and pass the directory",
            UNAVAILABLE,
        ) from error


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
