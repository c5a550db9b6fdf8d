"""What both sides read: rows that both can use, a reward model, and the two files of a cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.runs import write_rows
from benchmarks.versus.cells import Cell
from benchmarks.versus.floor import floor_flops, shape_of
from benchmarks.versus.orders import as_trained, cycled, grouped_by_length, placed
from benchmarks.versus.processes import Files
from data.encode import encode_records
from data.records import load_data
from data.row_table import Row
from models.load import load_scorer, load_tokenizer

HELDOUT_ROWS = 8  # train.py evaluates them before and after; TRL evaluates nothing


@dataclass(frozen=True)
class Pair:
    """A row as text and as tokens."""

    texts: Mapping[str, str]
    row: Row

    @property
    def longest(self) -> int:
        return len(self.row.prompt) + max(map(len, self.row.responses))


def read_pairs(model: str, data: str) -> tuple[list[Pair], list[Mapping[str, str]]]:
    """(training pairs, a few held-out ones as text), of strings.

    What train.py drops is left out, so that no file of ours loses a row.
    """
    records, heldout, _ = load_data(data, pairs=True)
    encoded = encode_records(records, load_tokenizer(model))
    pairs = [Pair(_texts(records[encoded.source[row.index]]), row) for row in encoded.rows]
    return pairs, [_texts(record) for record in heldout[:HELDOUT_ROWS]]


def _texts(record: Any) -> dict[str, str]:
    found = {name: getattr(record, name) for name in ("prompt", "chosen", "rejected")}
    if not all(isinstance(text, str) for text in found.values()):
        raise SystemExit(f"{record.where}: messages; give pairs of strings")
    return found


def make_scorer(model: str, folder: Path, seed: int) -> str:
    """The model with a new head for scores, in a directory that both sides load."""
    tokenizer = load_tokenizer(model)
    scorer = load_scorer(model, tokenizer, dtype="float32", seed=seed)
    scorer.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_files(
    cell: Cell,
    folder: Path,
    pairs: Sequence[Pair],
    heldout: Sequence[Mapping[str, str]],
    *,
    model: str,
    scorer: str,
    steps: int,
    seed: int,
) -> tuple[Files, int, int]:
    """(the files of a cell, steps that both sides make, floor FLOPs of those that count)."""
    if cell.kind == "ppo":
        pairs = list({pair.texts["prompt"]: pair for pair in pairs}.values())
    rows, made = cell.size(steps, len(pairs))
    if cell.kind == "ppo" and len(pairs) < rows:
        raise SystemExit(f"{cell.name}: {len(pairs)} prompts, and {rows} are needed")
    trained = as_trained(cycled(pairs, rows), cell.batch_size, seed)
    if cell.grouped:
        lengths = [pair.longest for pair in trained]
        trained = grouped_by_length(
            trained, lengths, cell.batch_size, warm_up=cell.warm_up, seed=seed
        )
    folder.mkdir(exist_ok=True)
    ours, trl, held = (folder / f"{name}.jsonl" for name in ("ours", "trl", "heldout"))
    as_file = placed([pair.texts for pair in trained], cell.batch_size, seed)
    write_rows(ours, [_columns(cell, texts) for texts in as_file])
    write_rows(trl, [_columns(cell, pair.texts, trl=True) for pair in trained])
    write_rows(held, [_columns(cell, texts) for texts in heldout])
    own = scorer if cell.loss == "reward" else model
    counted = trained[cell.warm_up * cell.batch_size :] if cell.kind == "steps" else []
    return Files(own, ours, trl, held, scorer), made, _flops(cell, counted, model)


def _columns(cell: Cell, texts: Mapping[str, str], *, trl: bool = False) -> dict[str, str]:
    """A row of a side's file: of ours sft reads the pairs' chosen responses by itself."""
    if cell.kind == "ppo":
        return {"prompt": texts["prompt"]}
    if cell.loss == "sft" and trl:
        return {"prompt": texts["prompt"], "completion": texts["chosen"]}
    return dict(texts)


def _flops(cell: Cell, pairs: Sequence[Pair], model: str) -> int:
    shape = shape_of(model)
    rows = [pair.row for pair in pairs]
    if cell.loss == "sft":
        rows = [replace(row, responses=row.responses[:1]) for row in rows]
    return sum(floor_flops(cell.loss, row, shape) for row in rows)
