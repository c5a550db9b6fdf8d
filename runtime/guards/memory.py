"""Out of memory: smaller micro-batches, and the same gradient."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from data.errors import NO_MEMORY, InputError

CPU_TEXTS = ("can't allocate memory", "not enough memory")  # of torch's allocator: a RuntimeError
LEAST = 64  # tokens: below, what is missing is no room for a micro-batch

Result = TypeVar("Result")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is used up, on whatever device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in CPU_TEXTS)


def with_less(
    attempt: Callable[[int], Result],
    max_tokens: int,
    *,
    ranks: int,
    undo: Callable[[], None],
    say: Callable[[str], None],
) -> tuple[Result, int]:
    """`attempt(max_tokens)`, with half as many tokens a micro-batch for as long as memory is short.

    A step's gradient is divided by the units of the whole step, so it does not depend on how the
    step is cut. With several ranks the others would wait in a collective: there the run ends with
    its checkpoint, and the command that goes on is said.

    Args:
        undo: brings back what a failed attempt may have left, the gradients.

    Returns:
        The result, and the tokens that it took.

    Raises:
        InputError: there is not enough memory for the smallest micro-batch, or for several ranks.
    """
    while True:
        try:
            return attempt(max_tokens), max_tokens
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).split("\n")[0][:200] or type(error).__name__
        # Outside `except`: the traceback holds the tensors of the step that failed.
        undo()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        half = max_tokens // 2
        if ranks > 1 or half < LEAST:
            what = (
                f"the same command with --max_tokens {half} goes on"
                if half >= LEAST
                else ("try --gradient_checkpointing, a smaller model or --max_length")
            )
            raise InputError(f"out of memory ({reason}); {what}", NO_MEMORY)
        say(
            f"out of memory with {max_tokens} tokens a forward; {half} from here on, with the same"
            f" gradient (--max_tokens {half} saves the attempt)"
        )
        max_tokens = half
