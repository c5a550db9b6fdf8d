"""What a model directory or hub id says of itself, read before any of its weights.

`read_config` is the first look at every model there is (policy, reference, reward model): what
cannot be trained or compared with, an adapter or a quantised checkpoint say, ends the run here, in
one line.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    PreTrainedConfig,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from data.errors import UNAVAILABLE, UNSAFE, USAGE, InputError
from data.files import check_file
from models.locate import ADAPTER, adapter_line, locate

Loaded = TypeVar("Loaded")

POSITIONS = (  # the names that families have for the longest text they take
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_sequence_length",
    "seq_length",
)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
QUANTISED = ("quantization_config", "compression_config")
ATTENTION = ("attn_implementation", "_attn_implementation")
ALWAYS_THERE = ("sdpa", "eager")  # attention that needs no package besides torch


def attempt(name: str, flag: str, what: str, load: Callable[[str], Loaded]) -> Loaded:
    """`load` of where `name` is; whatever it raises becomes one line that names flag and model."""
    where = locate(name, flag)
    for file in Path(where).iterdir() if os.path.isdir(where) else ():
        check_file(file, f"{flag} {name}: {file.name}")
    try:
        return load(where)
    except InputError:
        raise
    except SafetensorError as error:
        raise InputError(
            f"{flag} {name}: a weight file is cut short or damaged ({error}); get it again"
        ) from error
    except Exception as error:  # of a library that reads the user's files: a cause of any type
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")
        if not isinstance(error, (OSError, ValueError, RuntimeError, ImportError)):
            reason = f"{type(error).__name__}: {reason}"
        if os.path.isdir(where) or not isinstance(error, OSError):
            raise InputError(f"{flag} {name}: {what} cannot be loaded: {reason}") from error
        raise InputError(
            f"{flag} {name}: no such directory, and the hub does not give it ({reason});"
            f" offline, run `hf download {name}` on a connected machine and pass the directory",
            UNAVAILABLE,
        ) from error


def read_config(name: str, flag: str = "--model") -> PreTrainedConfig:
    """The config of a causal language model, or of a classifier on one.

    Raises:
        InputError: it cannot be read, or is of something else: an adapter, a quantised checkpoint,
            an encoder, a model whose code comes with it.
    """
    return attempt(name, flag, "it", lambda where: _config(where, f"{flag} {name}"))


def _config(where: str, who: str) -> PreTrainedConfig:
    if not os.path.isdir(where) and (adapter := _hub_file(where, ADAPTER)):
        raise InputError(f"{who}: {adapter_line(Path(adapter))}")
    raw = raw_config(where)
    kind = raw.get("model_type")
    if any(raw.get(field) or _text(raw).get(field) for field in QUANTISED):
        original = f", {base}" if (base := _base_model(where, raw)) else ""
        raise InputError(
            f"{who}: a quantised checkpoint cannot be trained; give the original{original}"
        )
    if raw.get("auto_map") and kind not in CONFIG_MAPPING:
        raise InputError(
            f"{who}: its code comes with it (auto_map in config.json), and such code is never run"
            " here; give a model of a family that transformers has",
            UNSAFE,
        )
    _refuse_pickles(where, who)
    config: PreTrainedConfig = AutoConfig.from_pretrained(where, trust_remote_code=False)
    causal, masked = MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING
    both_ways = type(config) in masked and not getattr(config, "is_decoder", False)
    encodes = both_ways or getattr(config, "is_encoder_decoder", False)
    if encodes or type(config) not in causal:
        raise InputError(
            f"{who}: a model of type {kind}, and a causal language model is needed: one that"
            " predicts each token from those before it"
        )
    _refuse_positions(config, who)
    return config


def _refuse_pickles(where: str, who: str) -> None:
    """Raise InputError for a directory whose weights could run code when they are read."""
    names = sorted(os.listdir(where)) if os.path.isdir(where) else []
    pickled = [name for name in names if name.endswith(PICKLES)]
    if pickled and not any(name.endswith(".safetensors") for name in names):
        raise InputError(
            f"{who}: its weights are a pickle ({pickled[0]}), which may run code when it is read;"
            " where you trust it, convert it: AutoModelForCausalLM.from_pretrained(...)"
            ".save_pretrained(...) writes safetensors",
            UNSAFE,
        )


def _refuse_positions(config: PreTrainedConfig, who: str) -> None:
    text: Any = config.get_text_config()
    if not isinstance(text, PreTrainedConfig):
        raise InputError(f"{who}: text_config in its config.json is {text!r}, and no object")
    for field in POSITIONS:
        value = getattr(text, field, None)
        if isinstance(value, int) and value <= 0 and text.model_type != "xlnet":  # -1: no limit
            raise InputError(f"{who}: {field} is {value} in its config.json; correct it")


def raw_config(where: str) -> dict[str, Any]:
    """config.json as it is written."""
    raw: dict[str, Any] = PreTrainedConfig.get_config_dict(where)[0]
    return raw


def _text(raw: dict[str, Any]) -> dict[str, Any]:
    """The part of a config.json that is about text, where that is a part."""
    part = raw.get("text_config")
    return part if isinstance(part, dict) else {}


def _base_model(where: str, raw: dict[str, Any]) -> str | None:
    """Of which model a quantised checkpoint was made, where its config or model card says so."""
    card = Path(where, "README.md")
    text = card.read_text("utf-8", errors="replace") if card.is_file() else ""
    found = re.search(r"^base_model:\s*(?:-\s*)?[\"']?([\w./-]+)", text, re.MULTILINE)
    named = raw.get("_name_or_path")
    return found[1] if found else named if isinstance(named, str) and named != where else None


def _hub_file(name: str, file: str) -> str | None:
    """A file of a hub repository, from the cache or fetched; None where there is none."""
    path: str | None = cached_file(
        name,
        file,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return path


# ---------------------------------------------------------------- what it takes


def max_positions(config: PreTrainedConfig) -> int | None:
    """Tokens of the longest text that the model takes; None where nothing limits it.

    Where RoPE is scaled, the scaled length counts.
    """
    text: Any = config.get_text_config()
    attention = getattr(text, "attn_config", None)
    alibi = getattr(text, "alibi", False) or getattr(attention, "alibi", False)
    relative = hasattr(text, "relative_attention_num_buckets")  # T5 and its kin
    if alibi or relative or text.model_type == "bloom":
        return None
    found = (getattr(text, field, None) for field in POSITIONS)
    positions = next((n for n in found if isinstance(n, int) and n > 0), None)
    rope = getattr(text, "rope_parameters", None)
    if positions is None or not isinstance(rope, dict):
        return positions
    factor = rope.get("factor")
    if not isinstance(factor, (int, float)) or rope.get("rope_type", "default") == "default":
        return positions
    return max(positions, int(factor * rope.get("original_max_position_embeddings", positions)))


def check_positions(longest: int, max_length: int, name: str, flag: str = "--model") -> None:
    """Raise InputError if the longest row is longer than the model takes.

    Beyond them a learned position does not exist, and a rotary one was never trained.
    """
    limit = max_positions(read_config(name, flag))
    if limit is not None and longest > limit:
        raise InputError(
            f"--max_length {max_length}: the longest row has {longest} tokens and {flag} {name}"
            f" takes {limit} positions; give --max_length {limit}",
            USAGE,
        )


def check_room(longest_prompt: int, new_tokens: int, name: str, flag: str) -> None:
    """Raise InputError unless the model takes the longest prompt and a response of `new_tokens`."""
    limit = max_positions(read_config(name, flag))
    if limit is not None and longest_prompt + new_tokens > limit:
        raise InputError(
            f"--max_new_tokens {new_tokens}: the longest prompt has {longest_prompt} tokens and"
            f" {flag} {name} takes {limit}; lower it, or --max_length",
            USAGE,
        )


def missing_attention(where: str) -> str | None:
    """The attention that a config.json asks for, where that needs more than torch.

    Such a field is left over from whoever saved the model on a GPU with that package.
    """
    raw = raw_config(where)
    for part in (raw, _text(raw)):
        for field in ATTENTION:
            wanted = part.get(field)
            if isinstance(wanted, str) and wanted not in ALWAYS_THERE:
                return wanted
    return None


# ---------------------------------------------------------------- how it is written


def files_dtype(name: str) -> torch.dtype | None:
    """The dtype that most of the numbers in the weight files have; None if it cannot be told.

    Read from the headers of safetensors files; for others it is what config.json says. Of a hub id
    only after its weights are loaded, or they are fetched for this.
    """
    where = locate(name)
    sizes = files_numbers(where)
    names = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16}
    names["F16"] = torch.float16
    for written, _ in sizes.most_common():
        if written in names:
            return names[written]
    raw = raw_config(where)
    said = str(raw.get("dtype") or raw.get("torch_dtype")).removeprefix("torch.")
    dtype = getattr(torch, said, None)
    return dtype if dtype in names.values() else None


def files_numbers(where: str) -> Counter[str]:
    """How many numbers of each dtype the headers of a model's safetensors files have."""
    sizes: Counter[str] = Counter()
    for file in _weight_files(where):
        with safe_open(file, framework="pt") as weights:
            for key in weights.keys():
                part = weights.get_slice(key)
                sizes[part.get_dtype()] += torch.Size(part.get_shape()).numel()
    return sizes


def _weight_files(where: str) -> list[str]:
    """The safetensors files of a model."""

    def find(name: str) -> str | None:
        if os.path.isdir(where):
            path = os.path.join(where, name)
            return path if os.path.exists(path) else None
        return _hub_file(where, name)

    if whole := find(SAFE_WEIGHTS_NAME):
        return [whole]
    index = find(SAFE_WEIGHTS_INDEX_NAME)
    if index is None:
        return []
    shards = json.loads(Path(index).read_text("utf-8"))["weight_map"].values()
    return [path for shard in sorted(set(shards)) if (path := find(shard))]
