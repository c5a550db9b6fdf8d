"""What final/ is: the trained model as its source was written, and as other programs can read it.

The weights have the dtype of the source's files, the tokenizer has the source's class, and the
generation config also stops at the end tokens that training taught. The model in memory stays as it
is.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME

from models.checkpoint import ATTENTION, files_dtype, raw_config
from models.locate import locate

TOKENIZER_CONFIG = "tokenizer_config.json"
KEPT = ("tokenizer_class", "legacy")  # fields of it that transformers 5 replaces or leaves out
# Transformers 5 has a class that no other version, nor vLLM or llama.cpp, knows.
NEW_CLASS, KNOWN_CLASS = "TokenizersBackend", "PreTrainedTokenizerFast"
NOT_KEPT = ("_name_or_path", "auto_map", *ATTENTION)  # fields of config.json: not true of final/
HOW_LOADED = ("is_local", "local_files_only")  # written by transformers 5, of no use to a reader


@dataclass(frozen=True)
class Final:
    """How to save the model that a run trains, at any time."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    end_tokens: frozenset[int]  # that training taught
    dtype: torch.dtype  # of the weight files
    config: Mapping[str, Any]  # config.json of the model that the run began from
    tokenizer_config: Mapping[str, Any]  # and its tokenizer_config.json

    @property
    def description(self) -> str:
        """For the user, who may not expect that digits are lost."""
        if torch.finfo(self.dtype).eps <= torch.finfo(self.model.dtype).eps:
            return "the model"
        name = str(self.dtype).removeprefix("torch.")
        return f"the model, rounded to {name}; --save_dtype float32 keeps every update"

    def save(self, folder: Path) -> None:
        """Write model and tokenizer, as save_pretrained lays them out."""
        model, dtype = self.model, self.dtype
        generation = taught_to_stop(model, self.tokenizer, self.end_tokens)
        weights = None if dtype == model.dtype else _cast(model, dtype)
        # Transformers refuses to write a generation config that was changed and has, as many on the
        # hub, a temperature without do_sample: so the model's own is written, then the changed one.
        model.save_pretrained(folder, state_dict=weights)
        if generation is not None:
            generation.to_json_file(folder / GENERATION_CONFIG_NAME, keys_to_pop=["compile_config"])
        _rewrite(folder / CONFIG_NAME, lambda config: readable_config(config, self.config, dtype))
        self.tokenizer.save_pretrained(folder)
        _rewrite(
            folder / TOKENIZER_CONFIG,
            lambda config: readable_tokenizer_config(config, self.tokenizer_config, self.tokenizer),
        )


def final_of(
    model: PreTrainedModel,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    end_tokens: Collection[int],
    save_dtype: str,
) -> Final:
    """How to save `model`, loaded from `name`, which need not be there any more when it is saved.

    Args:
        save_dtype: auto is the dtype of the files of `name`; but weights that were asked for in
            float64 are saved so.
    """
    dtype = model.dtype if save_dtype == "auto" else getattr(torch, save_dtype)
    if save_dtype == "auto" and dtype != torch.float64:
        dtype = files_dtype(name) or dtype
    where = locate(name)
    source = raw_config(where), get_tokenizer_config(where)
    return Final(model, tokenizer, frozenset(end_tokens), dtype, *source)


def taught_to_stop(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, end_tokens: Collection[int]
) -> GenerationConfig | None:
    """The model's generation config, which stops at the end tokens that training taught too.

    All its other fields stay as they are; so does the whole where it stops at them already. None
    for a classifier, which does not generate.
    """
    config: Any = model.generation_config if model.can_generate() else None
    if config is None:
        return None
    theirs = config.eos_token_id
    stops = [i for i in (theirs if isinstance(theirs, list) else [theirs]) if isinstance(i, int)]
    ours: list[Any] = [tokenizer.eos_token_id, *sorted(end_tokens)]
    more = [i for i in dict.fromkeys(ours) if i is not None and i not in stops]
    if not more:
        return config  # type: ignore[no-any-return]
    config = copy.deepcopy(config)
    config.eos_token_id = more[0] if len(stops + more) == 1 else stops + more
    # or transformers would make it anew, from a config.json that does not know them
    config._from_model_config = False
    return config  # type: ignore[no-any-return]


def _cast(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """The state dict in another dtype; tensors that share their memory share it still."""
    made: dict[tuple[Any, ...], Tensor] = {}
    cast = {}
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            cast[name] = tensor
            continue
        place = (tensor.data_ptr(), tensor.shape, tensor.stride())
        cast[name] = made.setdefault(place, tensor.to(dtype))
    return cast


def readable_config(
    written: dict[str, Any], source: Mapping[str, Any], dtype: torch.dtype
) -> dict[str, Any]:
    """config.json as transformers 5 wrote it, with the fields that versions before it read.

    They know no `rope_parameters`, and without `rope_theta` they would take the default for it and
    compute another model, in silence.
    """
    name = str(dtype).removeprefix("torch.")
    config = {k: v for k, v in source.items() if k not in NOT_KEPT} | rope_fields(written) | written
    config |= {key: name for key in ("dtype", "torch_dtype") if key in config}
    for key, part in written.items():
        if isinstance(part, dict) and key.endswith("_config"):
            found = source.get(key)
            config[key] = readable_config(part, found if isinstance(found, dict) else {}, dtype)
    return config


def rope_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_parameters` in the words of transformers 4."""
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict):
        return {}
    local = rope.get("sliding_attention")
    fields = {"rope_local_base_freq": local["rope_theta"]} if local else {}
    rope = dict(rope.get("full_attention") or rope)
    fields |= {key: rope.pop(key) for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    if config.get("model_type") == "gpt_neox":
        names = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
        fields = {names[key]: value for key, value in fields.items() if key in names}
    return fields | (
        {} if rope.get("rope_type", "default") == "default" else {"rope_scaling": rope}
    )


def readable_tokenizer_config(
    written: dict[str, Any], source: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """tokenizer_config.json as transformers 5 wrote it, made readable for versions before it."""
    kept = {field: source[field] for field in KEPT if field in source}
    config = {k: v for k, v in written.items() if k not in HOW_LOADED or k in source} | kept
    if config.get("tokenizer_class") in (None, NEW_CLASS):
        config["tokenizer_class"] = KNOWN_CLASS
    if isinstance(config.get("extra_special_tokens"), list):  # a mapping, before transformers 5
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    if config["tokenizer_class"] != KNOWN_CLASS:
        # Transformers 5 goes by tokenizer.json alone, classes before it by these: as in training.
        # Compared with the bare text: "a" may be no token, or unknown, where unk is bos and eos.
        bare, framed = (tokenizer("a", add_special_tokens=on)["input_ids"] for on in (False, True))
        for name, end in (("bos", slice(None, 1)), ("eos", slice(-1, None))):
            token = getattr(tokenizer, f"{name}_token_id")
            config[f"add_{name}_token"] = framed[end] == [token] != bare[end]
    return config


def _rewrite(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    config = change(json.loads(file.read_text("utf-8")))
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
    file.write_text(text + "\n", "utf-8")
