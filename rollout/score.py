"""What a response is worth: any function of prompts and responses, or a trained reward model.

    def brevity(prompts: list[str], responses: list[str]) -> list[float]:
        return [-len(response) for response in responses]

in `my_rewards.py` is named `my_rewards:brevity`. `score` calls it in batches and checks all that it
returns: a wrong reward must end the run with a line that says which, and never train on it.
"""

from __future__ import annotations

import difflib
import importlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, cast

import torch

from data.batches import inference_batches
from data.encode import Row, encode_records
from data.errors import NO_INPUT, USAGE, InputError
from data.readers import short
from data.rows import Record
from data.trees import Layout, pack, tree_tokens
from losses.forward import Scorer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Reward = Callable[[list[str], list[str]], Sequence[float]]  # (prompts, responses) -> one score each


def load_reward(spec: str) -> Reward:
    """The function that `module:function` names, in an installed package or a file right here.

    Raises:
        InputError: another form, no such module or function, or not callable.
    """
    module_name, colon, name = spec.partition(":")
    parts = [*module_name.split("."), name]
    if not (colon and all(map(str.isidentifier, parts))) or module_name.endswith(".py"):
        raise InputError(
            f"reward {short(spec)} is not of the form module:function (my_rewards:brevity, say; no"
            " path, no .py)",
            USAGE,
        )
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that a file of theirs shadows none of ours
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # their code runs here, and may raise anything
        missing = isinstance(error, ModuleNotFoundError) and error.name
        if missing and f"{module_name}.".startswith(f"{missing}."):
            reason = f"no module {missing}, neither installed nor in this directory"
        else:
            reason = f"importing {module_name} raises {_one_line(error)}"
        raise InputError(f"reward {spec}: {reason}", NO_INPUT) from error
    if not hasattr(module, name):
        close = difflib.get_close_matches(name, dir(module), n=1)
        guess = f"; did you mean {close[0]}?" if close else ""
        raise InputError(f"reward {spec}: {module_name} has no {name}{guess}", NO_INPUT)
    reward: Any = getattr(module, name)
    if not callable(reward):
        kind = type(reward).__name__
        raise InputError(f"reward {spec}: {name} is of type {kind}, not a function", USAGE)
    return cast(Reward, reward)


def score(
    reward: Reward, prompts: list[str], responses: list[str], *, batch_size: int = 64
) -> list[float]:
    """One finite score a row, from calls on at most `batch_size` rows.

    The function may return a list, a tuple, or anything of shape (n,) with `tolist`: a numpy array,
    a tensor on any device.

    Raises:
        InputError: it raises, or returns anything but one finite number a row; names the row.
    """
    if len(prompts) != len(responses) or batch_size < 1:
        raise ValueError(f"{len(prompts)=}, {len(responses)=} and {batch_size=} do not fit")
    scores: list[float] = []
    for start in range(0, len(prompts), batch_size):
        batch = range(start, min(start + batch_size, len(prompts)))
        scores += _score_batch(reward, prompts, responses, batch)
    return scores


def _score_batch(
    reward: Reward, prompts: list[str], responses: list[str], batch: range
) -> list[float]:
    def fail(rows: range, reason: str, cause: Exception | None = None) -> InputError:
        first = rows[0]
        at = f"row {first + 1}" if len(rows) == 1 else f"rows {first + 1} to {rows[-1] + 1}"
        texts = f"prompt {short(prompts[first])}, response {short(responses[first])}"
        error = InputError(f"reward {name_of(reward)}, {at} ({texts}): {reason}")
        error.__cause__ = cause
        return error

    def call(rows: range) -> Any:
        part = slice(rows.start, rows.stop)  # copies: what the function does to them stays there
        return reward(prompts[part], responses[part])

    try:
        given = call(batch)
    except InputError:
        raise
    except Exception as error:
        for i in batch if len(batch) > 1 else ():
            try:  # which row it is can be found only by asking for each
                call(range(i, i + 1))
            except Exception as alone:
                raise fail(range(i, i + 1), f"it raises {_one_line(alone)}", alone) from alone
        raise fail(batch, f"it raises {_one_line(error)}", error) from error

    values = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(values, (list, tuple)):
        raise fail(batch, f"it returns a {type(given).__name__}, not a list with a number a row")
    shape = tuple(getattr(given, "shape", (len(values),)))
    if len(shape) != 1:
        raise fail(batch, f"it returns shape {shape}; a score a row is shape ({len(batch)},)")
    if len(values) != len(batch):
        raise fail(batch, f"it returns {len(values)} scores for {len(batch)} rows")
    scores = []
    for i, value in zip(batch, values, strict=True):
        number = value.tolist() if hasattr(value, "tolist") else value  # numpy's, or a 0-d tensor
        if not isinstance(number, Real):
            raise fail(range(i, i + 1), f"its score {short(value)} is not a number")
        try:
            scores.append(float(number))
        except OverflowError:
            scores.append(math.inf)
        if not math.isfinite(scores[-1]):
            raise fail(range(i, i + 1), f"its score {short(number)} is not finite")
    return scores


def name_of(reward: Reward) -> str:
    """`module:function`, or the class of a callable object."""
    name = getattr(reward, "__qualname__", None)
    return f"{reward.__module__}:{name}" if name else type(reward).__name__


def _one_line(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(":")
    return text if len(text) <= 160 else f"{text[:157]}..."


class ModelReward:
    """A `Reward` from a sequence classifier with one output, as `--loss reward` trains it.

    Texts become tokens by the rules they were trained with (data/encode.py), one end token
    included, and the score is read at the last. A response that has no tokens, which training
    drops, is its end token alone.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_tokens: int = 4096,
        max_length: int = 1024,
        layout: Layout = "tree",
    ) -> None:
        """
        Args:
            max_tokens: tokens of a micro-batch.
            max_length: a longer text keeps its start, as in training.
            layout: "rectangle" for models that do not take the mask of a token tree.

        Raises:
            InputError: the model has more than one output, or none where it is looked for.
        """
        kind, labels = type(model).__name__, model.config.num_labels
        if labels != 1:
            raise InputError(
                f"reward model: {kind} has num_labels {labels}, and a score is one number;"
                " give a sequence classifier with num_labels 1, such as --loss reward trains",
                USAGE,
            )
        if not hasattr(model, "score"):
            raise InputError(
                f"reward model: {kind} has no head `score` on a causal language model;"
                " give a sequence classifier such as --loss reward trains",
                USAGE,
            )
        self.model = model.eval()
        self.scorer = Scorer(model)
        self.tokenizer = tokenizer
        self.max_tokens, self.max_length, self.layout = max_tokens, max_length, layout

    def __call__(self, prompts: list[str], responses: list[str]) -> list[float]:
        rows = self._rows(prompts, responses) if prompts else []
        scores = [0.0] * len(rows)
        lengths = [tree_tokens(row, include_last_token=True) for row in rows]
        for part in inference_batches(lengths, 1, self.max_tokens)[0]:
            batch = pack([rows[i] for i in part], layout=self.layout, include_last_token=True)
            with torch.no_grad():
                values = self.scorer(batch.to(self.model.device)).tolist()
            for i, value in zip(part, values, strict=True):
                scores[i] = value
        return scores

    def _rows(self, prompts: list[str], responses: list[str]) -> list[Row]:
        # Each prompt once more with the end token alone, which stands in where a row is dropped.
        end = str(self.tokenizer.eos_token)
        texts = list(zip(prompts, responses, strict=True)) + [(prompt, end) for prompt in prompts]
        records = [Record(prompt, response, None) for prompt, response in texts]
        encoded = encode_records(records, self.tokenizer, max_length=self.max_length)
        found = dict(zip(encoded.source, encoded.rows, strict=True))
        rows = []
        for i, prompt in enumerate(prompts):
            row = found.get(i, found.get(len(prompts) + i))
            if row is None:
                raise InputError(
                    f"reward model, row {i + 1} (prompt {short(prompt)}): no room for a response in"
                    f" max_length {self.max_length}; raise it, or leave out long prompts"
                )
            rows.append(row)
        return rows
