"""What a response is worth: any function of prompts and responses.

    def brevity(prompts: list[str], responses: list[str]) -> list[float]:
        return [-len(response) for response in responses]

in `my_rewards.py` is named `my_rewards:brevity`. A function may ask for more of each prompt's row:
a parameter beside the first two is given the column of that name, and **kwargs all columns.

    def exact(prompts, responses, answer, **kwargs):
        return [float(r.strip() == a) for r, a in zip(responses, answer)]

`score` calls it in batches and checks all that it returns: a wrong reward ends the run with a line
that names the row, and is never trained on.
"""

from __future__ import annotations

import copy
import difflib
import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, cast

import torch

from data.errors import NO_INPUT, USAGE, InputError
from data.messages import Text
from data.prompts import TakenColumns
from data.readers import short

# (prompts, responses, **columns) -> one score each; all are lists of one length, and new ones at
# every call:
#   prompts    as the data has them: strings, or lists of messages [{"role": ..., "content": ...}]
#   responses  strings: what was sampled, without the tokens that end a response
#   columns    by name, one value a row as the data has it, None where a row has none
Reward = Callable[..., Sequence[float]]

# Names by which a function shows that it wants them in another order.
PROMPTS = {"prompt", "prompts", "question", "questions", "query", "queries"}
RESPONSES = {"response", "responses", "completion", "completions", "answer", "answers"}


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
        found = type(reward).__name__
        raise InputError(f"reward {spec}: {name} is of type {found}, not a function", USAGE)
    return cast(Reward, reward)


def taken_columns(reward: Reward, by: str) -> TakenColumns:
    """The columns that a function takes, by its parameters; `by` is how messages call it.

    Raises:
        InputError: it does not take prompts and responses as its first two arguments.
    """
    try:
        signature = inspect.signature(reward)
    except (TypeError, ValueError):  # some functions written in C do not tell
        return TakenColumns(by)
    parameters = [*signature.parameters.values()]
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    given = [p for p in parameters if p.kind in by_place][:2]  # prompts and responses
    names = [p.name.lower() for p in given]
    fits = not RESPONSES & set(names[:1]) and not PROMPTS & set(names[1:])
    try:
        signature.bind_partial([], [])
    except TypeError:
        fits = False
    if not fits:
        raise InputError(
            f"{by}: the function is called with a list of prompts and a list of responses, in this"
            f" order, and its parameters are {signature}; give it these two first",
            USAGE,
        )
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = [p for p in parameters if p.kind in by_name and p not in given]
    required = frozenset(p.name for p in named if p.default is inspect.Parameter.empty)
    return TakenColumns(
        by,
        required,
        frozenset(p.name for p in named) - required,
        any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters),
        TakenColumns().reserved | {p.name for p in given},
    )


def score(
    reward: Reward,
    prompts: Sequence[Text],
    responses: Sequence[str],
    columns: Mapping[str, Sequence[object]] | None = None,
    *,
    batch_size: int = 64,
) -> list[float]:
    """One finite score a row, from calls on at most `batch_size` rows.

    `columns`: by name, one value a row.

    The function may return a list, a tuple, or anything of shape (n,) with `tolist`: a numpy array,
    a tensor on any device.

    Raises:
        InputError: it raises, or returns anything but one finite number a row; names the row.
    """
    columns = columns or {}
    lengths = {len(prompts), len(responses), *map(len, columns.values())}
    if len(lengths) > 1 or batch_size < 1:
        raise ValueError(f"{len(prompts)=}, {len(responses)=} and {batch_size=} do not fit")
    scores: list[float] = []
    for start in range(0, len(prompts), batch_size):
        batch = range(start, min(start + batch_size, len(prompts)))
        scores += _score_batch(reward, prompts, responses, columns, batch)
    return scores


def _score_batch(
    reward: Reward,
    prompts: Sequence[Text],
    responses: Sequence[str],
    columns: Mapping[str, Sequence[object]],
    batch: range,
) -> list[float]:
    def fail(rows: range, reason: str) -> InputError:
        first = rows[0]
        at = f"row {first + 1}" if len(rows) == 1 else f"rows {first + 1} to {rows[-1] + 1}"
        texts = f"prompt {short(prompts[first])}, response {short(responses[first])}"
        return InputError(f"reward {name_of(reward)}, {at} ({texts}): {reason}")

    def call(rows: range) -> Any:
        def part(values: Sequence[Any]) -> list[Any]:  # what is done to a copy stays there
            return copy.deepcopy(list(values[rows.start : rows.stop]))

        given = {name: part(values) for name, values in columns.items()}
        process = os.getpid()
        with torch.set_grad_enabled(torch.is_grad_enabled()):  # put back what the function changes
            returned = reward(part(prompts), part(responses), **given)
        if os.getpid() != process:
            os._exit(0)  # a child that the function forked and let return: one trains, not two
        return returned

    try:
        given = call(batch)
    except InputError:
        raise
    except Exception as error:
        for i in batch if len(batch) > 1 else ():
            try:  # which row it is can be found only by asking for each
                call(range(i, i + 1))
            except Exception as alone:
                raise fail(range(i, i + 1), f"it raises {_one_line(alone)}") from alone
        raise fail(batch, f"it raises {_one_line(error)}") from error

    if inspect.iscoroutine(given):
        given.close()  # or Python warns that nobody waited for it
        raise fail(batch, "it is an async function; give one that returns the scores")
    try:
        values = given.tolist() if hasattr(given, "tolist") else given
    except Exception as error:
        raise fail(batch, f"what it returns cannot be a list: {_one_line(error)}") from error
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
        if not abs(scores[-1]) <= torch.finfo(torch.float32).max:
            raise fail(range(i, i + 1), f"its score {short(number)} is not finite in float32")
    return scores


def name_of(reward: Reward) -> str:
    """`module:function`, or the class of a callable object."""
    name = getattr(reward, "__qualname__", None)
    return f"{reward.__module__}:{name}" if name else type(reward).__name__


def _one_line(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(":")
    return text if len(text) <= 160 else f"{text[:157]}..."
