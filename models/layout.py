"""Which way a model takes a batch: token trees where it can, else the padded rectangle.

Decided by trying two short rows: the layout that is used gives the log-probs (or scores) that the
model gives each sequence alone, whatever its family.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from data.errors import NOT_FINITE, USAGE, InputError
from data.row_table import Row
from data.trees import Layout, pack
from models.forward import Policy, Scorer, body, head

Wanted = Literal["auto", "tree", "rectangle"]
Task = Literal["causal_lm", "seq_cls", "token_cls"]  # what a model is for, in PEFT's names
OUTPUTS = {"causal_lm": "log-probs", "seq_cls": "scores", "token_cls": "values"}

# Logits that are more than a linear map of the hidden state: config fields that say so.
LOGIT_FIELDS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-3}  # bfloat16 and float16: 0.15
REFUSALS = (ValueError, RuntimeError, TypeError, KeyError, IndexError)


@torch.no_grad()
def choose_layout(
    model: PreTrainedModel, wanted: Wanted, task: Task = "causal_lm", name: str = "--model"
) -> tuple[Layout, nn.Module, str]:
    """(layout, the model as a module from batches to log-probs or scores, a line for the user).

    A critic (token_cls) is tried as a scorer: what it makes of a text's last state has all the
    others in it.

    Args:
        name: what to call the model in an error.

    Raises:
        InputError: `wanted` is "tree" and the model cannot take one, or its weights hold a NaN.
    """
    rows, include_last_token, outputs = _rows(model), task != "causal_lm", OUTPUTS[task]
    if task == "seq_cls" and not hasattr(model, "score"):
        family = type(model).__name__
        raise InputError(f"{name}: {family} has no head named score, so cannot be a reward model")
    try:
        if include_last_token:
            truth = _scores_alone(model, rows)
        else:
            truth = Policy(model, fused=False)(pack(rows, layout="rectangle").to(model.device))
    except (*REFUSALS, AttributeError, AssertionError) as problem:  # odd values in its config.json
        if "memory" in str(problem):
            raise
        reason = f"{type(problem).__name__}: {' '.join(str(problem).split())[:200]}"
        raise InputError(f"{name}: it cannot be run ({reason}); see its config.json") from problem
    if not truth.isfinite().all():
        damaged = "are not finite; are its weights damaged?"
        raise InputError(f"{name}: its {outputs} {damaged}", NOT_FINITE)
    tolerance = TOLERANCES.get(model.dtype, 0.15)
    layouts: list[Layout] = ["rectangle"] if wanted == "rectangle" else ["tree", "rectangle"]
    reason = ""
    for layout in layouts:
        for module, note in _modules(model, task):
            batch = pack(rows, layout=layout, include_last_token=include_last_token).to(
                model.device
            )
            try:
                error = (module(batch) - truth).abs().max().item()
            except REFUSALS as problem:
                reason = f"{type(problem).__name__}: {' '.join(str(problem).split())[:80]}"
                continue
            if error <= tolerance:
                if layout == "tree":
                    return layout, module, f"token trees{note}"
                why = "as asked" if wanted == "rectangle" else f"no token trees ({reason})"
                return layout, module, f"padded rectangle, {why}{note}"
            reason = f"{outputs} differ by {error:.1g}"
        if wanted == "tree":
            break
    raise InputError(f"--layout {wanted}: {name} cannot take it ({reason})", USAGE)


def common_layout(
    models: Sequence[tuple[str, PreTrainedModel, Task]], wanted: Wanted
) -> tuple[Layout, list[nn.Module], str]:
    """`choose_layout` for (name, model, task) that are given the same batches.

    Trees only if every one of them takes trees; the description names the one that does not.
    """
    chosen = [choose_layout(model, wanted, task, name) for name, model, task in models]
    for (name, _, _), (layout, _, description) in zip(models, chosen, strict=True):
        if layout == "rectangle" and wanted == "auto":
            _, modules, _ = common_layout(models, "rectangle")  # the others were tried with trees
            return layout, modules, f"{description}, because of {name}"
    layout, _, description = chosen[0]
    return layout, [module for _, module, _ in chosen], description


def _modules(model: PreTrainedModel, task: Task) -> Iterator[tuple[nn.Module, str]]:
    """The ways to run it, the better first, each with a remark for its description."""
    if task != "causal_lm":
        yield Scorer(model), ""
        return
    config = model.config.get_text_config()
    if all(getattr(config, field, None) in (None, 1.0) for field in LOGIT_FIELDS):
        yield Policy(model), ""
    yield Policy(model, fused=False), ", logits by the model's own head"


def _scores_alone(model: PreTrainedModel, rows: list[Row]) -> Tensor:
    """(S,) score of every sequence by itself, without padding or mask."""
    scores = []
    for row in rows:
        for response in row.responses:
            ids = torch.tensor([row.prompt + response], device=model.device)
            hidden = body(model)(ids, use_cache=False).last_hidden_state
            scores.append(head(model)(hidden[0, -1:])[0, 0])
    return torch.stack(scores)


def _rows(model: PreTrainedModel) -> list[Row]:
    """Two short rows with shared prompts, one with a shared first response token."""
    vocabulary = model.config.get_text_config().vocab_size
    ids = [3 + i % max(1, vocabulary - 4) for i in range(40)]
    return [
        Row(0, ids[:7], [ids[7:11], ids[7:8] + ids[20:25]], [True, True], [1, 1]),
        Row(1, ids[30:33], [ids[33:36], ids[12:18]], [True, True], [1, 1]),
    ]
