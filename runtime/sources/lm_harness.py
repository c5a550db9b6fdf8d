"""lm-eval's own PIQA task on rows in memory, without a trace left in the process that asks for it.

The task is the definition that lm-eval ships (its prompt, delimiter, metrics), with the rows given
to it in place of the hub's. No network, and no data set cache.

Left as it is, lm-eval draws from Python's random numbers, switches the model to eval mode, gives
the tokenizer a pad token (which `save_pretrained` would then write), and sets environment variables
when imported. `untouched` puts all of it back; `tests/test_lm_eval.py` compares the bytes.
"""

from __future__ import annotations

import copy
import io
import logging
import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

PRECISIONS = {"bf16": "bfloat16", "fp16": "float16"}  # Accelerate's names, and torch's
Request = tuple[object, list[int], list[int]]  # lm-eval's: texts, prompt tokens, response tokens
Answer = tuple[float, bool]  # lm-eval's: log-prob, whether greedy decoding gives it


class RowScore(NamedTuple):
    """lm-eval's scores of one row."""

    logp1: float  # nats: log-probability of sol1 given the goal, summed over its tokens
    logp2: float
    acc: int  # 1 if the right solution has the greater one
    acc_norm: int  # the same of log-probability per character


def piqa_task() -> dict[str, Any]:
    """lm-eval's definition of its `piqa` task, as its package has it."""
    import lm_eval

    path = Path(lm_eval.__file__).parent / "tasks" / "piqa" / "piqa.yaml"
    task: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return task


def piqa_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, object]],
    *,
    batch_size: int = 16,
    accelerator: Accelerator | None = None,
    progress: bool = False,
) -> list[RowScore]:
    """Score `rows` (goal, sol1, sol2, and label 0 or 1) with lm-eval; row i of the result is row i.

    `batch_size` counts solutions, two a row. With an `accelerator` of several processes every one
    must call this with the same rows; they share the work and all get the whole result. Under its
    mixed precision the forward is autocast, and the log-softmax taken in float32. A row longer than
    the model's context loses its beginning, by lm-eval's rule. `progress` shows a bar.
    """
    stderr = sys.stderr
    with untouched(model), redirect_stderr(io.StringIO()):  # lm-eval's own bars
        from datasets import Dataset, DatasetDict
        from lm_eval.api.task import ConfigurableTask
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        columns = ("goal", "sol1", "sol2", "label")
        docs = [{column: row[column] for column in columns} for row in rows]
        ours = {
            "training_split": None,
            "num_fewshot": 0,
            "custom_dataset": lambda **_: DatasetDict(validation=Dataset.from_list(docs)),
        }
        task = ConfigurableTask(config=piqa_task() | ours)
        precision = PRECISIONS.get(accelerator.mixed_precision) if accelerator else None
        lm = HFLM(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),
            batch_size=batch_size,
            mixed_precision_dtype=precision,
            softmax_dtype="float32" if precision else None,
        )
        bar = partial(tqdm, desc="lm-eval", unit="batch", file=stderr, disable=not progress)
        score = lm._loglikelihood_tokens
        lm._loglikelihood_tokens = partial(_in_shares, score, batch_size, accelerator, bar)
        results = evaluate(lm=lm, task_dict={"piqa": task}, log_samples=True, bootstrap_iters=0)
        return _row_scores(results["samples"]["piqa"])


def _in_shares(
    score: Callable[..., list[Answer]],
    batch_size: int,
    accelerator: Accelerator | None,
    bar: Callable[..., Iterable[list[int]]],
    requests: list[Request],
    **options: object,
) -> list[Answer]:
    """lm-eval's `_loglikelihood_tokens`, with each process scoring some of the batches.

    The batches are lm-eval's on one process: the longest first, and texts that differ in their last
    token only counted as one. They do not depend on the number of processes, and so the last bit
    does not either. lm-eval itself deals out rows to processes and then makes batches, and not at
    all for a model in memory (its issue 3312).
    """
    rank, ranks = 0, 1
    if accelerator is not None:
        rank, ranks = accelerator.process_index, accelerator.num_processes
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, (_, context, continuation) in enumerate(requests):
        groups.setdefault((*context, *continuation[:-1]), []).append(i)
    order = sorted(groups, key=lambda tokens: (-len(tokens), tokens))
    batches = [
        [i for tokens in order[k : k + batch_size] for i in groups[tokens]]
        for k in range(0, len(order), batch_size)
    ]
    answers: dict[int, Answer] = {}
    for batch in bar(batches[rank::ranks]):
        found = score([requests[i] for i in batch], disable_tqdm=True)
        answers |= zip(batch, found, strict=True)
    if ranks > 1:
        answers = {i: a for part in gather_object([answers]) for i, a in part.items()}
    return [answers[i] for i in range(len(requests))]


def piqa_accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, object]],
    **options: Any,
) -> dict[str, float]:
    """The means of `piqa_scores`, under the names that a run logs them by."""
    scores = piqa_scores(model, tokenizer, rows, **options)
    return {
        "lm_eval/acc": sum(row.acc for row in scores) / len(scores),
        "lm_eval/acc_norm": sum(row.acc_norm for row in scores) / len(scores),
    }


def _row_scores(samples: list[dict[str, Any]]) -> list[RowScore]:
    scores = []
    for sample in sorted(samples, key=lambda sample: int(sample["doc_id"])):
        (first, _), (second, _) = sample["filtered_resps"]
        scores.append(
            RowScore(float(first), float(second), int(sample["acc"]), int(sample["acc_norm"]))
        )
    return scores


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put back what lm-eval changes: random numbers, train or eval mode, environment, logging."""
    training = [(module, module.training) for module in model.modules()]
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    environment = dict(os.environ)
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)  # its warnings are of what is done here on purpose
    try:
        yield
    finally:
        logger.setLevel(level)
        os.environ.clear()
        os.environ.update(environment)
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)
        for module, mode in training:
            module.training = mode
