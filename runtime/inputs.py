"""From the flags to encoded rows: both splits, checked whole before any weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data.encode import Row, encode_records
from data.errors import USAGE, InputError
from data.piqa import piqa_rows
from data.records import load_data
from data.trees import Layout, TreeBatch, pack, tree_tokens
from losses.base import Loss
from runtime.config import TrainConfig


@dataclass(frozen=True)
class Rows:
    """One split, and how its rows become batches."""

    rows: list[Row]
    layout: Layout = "tree"
    ref_logps: Tensor | None = None  # (rows, responses)
    packing: Mapping[str, bool] = field(default_factory=dict)  # what else the loss needs in a batch
    piqa: Sequence[Mapping[str, object]] = ()  # the rows as lm-eval takes them, for --lm_eval

    @property
    def lengths(self) -> list[int]:
        """Tokens that each row costs."""
        include_last_token = self.packing.get("include_last_token", False)
        return [tree_tokens(row, include_last_token=include_last_token) for row in self.rows]

    @property
    def tokens(self) -> set[int]:
        """Every token id there is."""
        ids = (part for row in self.rows for part in (row.prompt, *row.responses))
        return {token for part in ids for token in part}

    def batch(self, members: Sequence[int], device: torch.device) -> TreeBatch:
        """The rows `members` as one micro-batch; if there are none, one that counts for nothing."""
        batch = pack([self.rows[i] for i in members or [0]], layout=self.layout, **self.packing)
        if self.ref_logps is not None:
            batch = replace(batch, ref_logps=self.ref_logps[batch.index].flatten())
        return replace(batch, dummy=not members).to(device)


def load_rows(
    config: TrainConfig, loss: Loss, loss_config: Any, tokenizer: PreTrainedTokenizerBase
) -> tuple[Rows, Rows, list[str]]:
    """(training rows, held-out rows, what to tell the user).

    Raises:
        InputError: naming file, line, column and reason.
    """
    columns = parse_columns(config.columns)
    records, heldout, told = load_data(
        config.data,
        config.eval_data,
        pairs=loss.responses_per_row == 2,
        columns=columns,
        seed=config.seed,
    )
    if (
        loss.responses_per_row == 1
    ):  # it trains on the chosen response; the other is for held-out accuracy
        records = [replace(record, rejected=None) for record in records]
    piqa = piqa_rows(heldout) if config.lm_eval else []
    lines = [f"data: {told}"]
    splits = []
    for name, part in (("train", records), ("held out", heldout)):
        encoded = encode_records(
            part, tokenizer, max_length=config.max_length, overlong=config.overlong
        )
        lines.append(encoded.report.line(name))
        splits.append(Rows(encoded.rows, packing=loss.packing(loss_config)))
    return splits[0], replace(splits[1], piqa=piqa), lines


def parse_columns(text: str | None) -> dict[str, str]:
    """`chosen=preferred,rejected=other` as {"chosen": "preferred", "rejected": "other"}."""
    pairs = [pair.partition("=") for pair in text.split(",")] if text else []
    for ours, sign, theirs in pairs:
        if not (ours and sign and theirs):
            raise InputError(f"--columns {text}: write ours=theirs,ours=theirs", USAGE)
    return {ours: theirs for ours, _, theirs in pairs}


def show_examples(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, count: int = 2) -> str:
    """The first rows decoded, trained tokens between bars; the prompt is not trained on."""
    lines = []
    for number, row in enumerate(rows[:count], 1):
        lines.append(f"example {number}: prompt of {len(row.prompt)} tokens, not trained on")
        lines.append(f"    {tokenizer.decode(row.prompt)!r}")
        names = ("chosen", "rejected") if len(row.responses) > 1 else ("response",)
        for name, response, whole in zip(names, row.responses, row.ends, strict=True):
            tokens = "|".join(str(tokenizer.decode([token])) for token in response)
            end = "" if whole else ", cut, so without an end token"
            lines.append(f"  {name}: {len(response)} trained tokens{end}")
            lines.append(f"    |{tokens}|".replace("\n", "\\n"))
    return "\n".join(lines)
