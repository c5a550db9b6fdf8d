"""The data of a run as training wants it: both splits as tokens, and what there is to say of them.

data/records.py  ->  data/encode.py  ->  Prepared  <->  data/token_cache.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from data.encode import encode_records
from data.options import ReadOptions
from data.piqa import piqa_rows
from data.records import check_skipped, load_data
from data.row_table import RowTable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class DataSettings:
    """The flags of these names that decide which tokens there are; see runtime/config.py."""

    data: str
    eval_data: str | None = None
    responses: Literal[1, 2] = 2  # that the loss takes of a row
    reading: ReadOptions = field(default_factory=ReadOptions)
    seed: int = 0  # draws the held-out rows where none are given
    max_length: int = 1024
    overlong: Literal["truncate", "drop"] = "truncate"
    piqa: bool = False  # the held-out rows are asked for as rows of PIQA too


@dataclass(frozen=True)
class Prepared:
    train: RowTable
    heldout: RowTable
    piqa: Sequence[dict[str, object]]  # the held-out rows as lm-eval takes them, if asked for
    end_tokens: frozenset[int]  # with which whole responses end
    lines: Sequence[str]  # for the user: where the rows are from, and what became of them


def prepare(settings: DataSettings, tokenizer: PreTrainedTokenizerBase) -> Prepared:
    """Read and encode both splits.

    Raises:
        InputError: naming file, line, column and reason.
    """
    reading = settings.reading
    records, heldout, description = load_data(
        settings.data,
        settings.eval_data,
        pairs=settings.responses == 2,
        options=reading,
        seed=settings.seed,
    )
    if settings.responses == 1:
        # It trains on the chosen response; of held-out rows the other serves for the accuracy.
        records = [replace(record, rejected=None) for record in records]
    piqa = piqa_rows(heldout) if settings.piqa else []
    lines, tables, ends = [f"data: {description}"], [], frozenset[int]()
    for name, part in (("train", records), ("held out", heldout)):
        encoded = encode_records(
            part,
            tokenizer,
            max_length=settings.max_length,
            overlong=settings.overlong,
            bad_rows=reading.bad_rows,
            ignore=reading.ignore,
        )
        check_skipped(encoded.report.skipped, len(encoded.rows), name)
        lines.append(encoded.report.line(name))
        ends |= encoded.report.end_tokens
        tables.append(encoded.rows)
    return Prepared(tables[0], tables[1], piqa, ends, lines)
