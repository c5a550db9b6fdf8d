"""A model to evaluate: a base model, what a run left, or an adapter on its base model."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.errors import NO_INPUT, USAGE, InputError
from models.load import load_causal_lm, load_tokenizer, tokenizer_at
from models.locate import locate

ADAPTER = "adapter_config.json"
AGAIN = "make or get this directory again"


def resolve(name: str) -> str:
    """The directory or hub id that `name` means: of a run directory (`runs/dpo`), its `final/`.

    Raises:
        InputError: nothing is there, it is damaged, it is a reward model, or of an unfinished run.
    """
    if name == "pocket":
        return name
    path = Path(name).expanduser()
    if (path / "final").is_dir():
        path = path / "final"
    elif (path / "status.json").exists():
        state = read_object(path / "status.json").get("state")
        raise InputError(f"--model {name}: this run is {state} and left no final/", NO_INPUT)
    if (path / ADAPTER).exists():
        base_model(path)
        return str(path)
    where = locate(str(path) if path.exists() else name)
    config = Path(where, "config.json")
    if config.exists():
        kinds = read_object(config).get("architectures") or []
        if not (isinstance(kinds, list) and all(isinstance(kind, str) for kind in kinds)):
            raise InputError(f"{config}: architectures is {kinds!r}, no list of names; {AGAIN}")
        if any("Classification" in kind for kind in kinds):
            raise InputError(
                f"--model {name}: a reward model ({kinds[0]}), which gives scores and no"
                " log-probabilities; its held-out accuracy is in the run's summary.json",
                USAGE,
            )
    return where


def base_model(adapter: Path) -> str:
    """The directory or hub id of the base model that an adapter directory names."""
    file = adapter / ADAPTER
    name = read_object(file).get("base_model_name_or_path")
    if not isinstance(name, str):
        raise InputError(f"{file}: names no base model, base_model_name_or_path is {name!r}")
    try:
        base = resolve(name)
    except InputError as error:
        raise InputError(f"{file}: its base model: {error}", error.exit_code) from error
    if (Path(base) / ADAPTER).exists():
        raise InputError(f"{file}: its base model {base} is an adapter too; merge that one first")
    return base


def read_object(file: Path) -> dict[str, Any]:
    """What is in a JSON file of a model; InputError if that is no object."""
    try:
        found = json.loads(file.read_text("utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}, not an object")
    except ValueError as error:
        raise InputError(f"{file}: cut short or damaged ({error}); {AGAIN}") from error
    return found


def load(where: str, *, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer of what `resolve` returned; InputError if they cannot be had.

    An adapter is put on its base model through `peft`, not merged into it.
    """
    if not (Path(where) / ADAPTER).exists():
        return load_causal_lm(where, dtype=dtype), load_tokenizer(where)
    try:
        from peft import PeftModel
    except ImportError as error:
        raise InputError(
            f"--model {where}: an adapter, which needs peft: pip install 'alignment-losses[lora]'",
            USAGE,
        ) from error
    base = base_model(Path(where))
    model: Any = load_causal_lm(base, dtype=dtype, flag=f"--model {where}: base model")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of what peft calls in transformers
            model = PeftModel.from_pretrained(model, where)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"--model {where}: the adapter cannot be loaded: {reason}") from error
    if not (Path(where) / "tokenizer.json").exists():
        return model, load_tokenizer(base)
    try:
        return model, tokenizer_at(where)
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"--model {where}: its tokenizer cannot be loaded: {reason}") from error
