"""A chat template applied: it is a program that came with somebody's model, and is kept in bounds.

Jinja's sandbox keeps it from files and from Python's own objects (transformers takes that one), and
`limited` from taking all time and memory. It sees no clock: the same command has to give the same
tokens tomorrow.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SECONDS = 10.0  # of this process's computing: a busy machine does not count
BYTES = 2 << 30  # of memory beside what the process has
LONGEST = 1 << 20  # characters made of messages that have not a tenth as many
DATE = datetime(2024, 7, 26)  # for today's: what Llama's templates write where they cannot ask
CLOCK = "strftime_now"  # transformers' function for templates
# The function as a macro: it is the template's own, and so comes before that of the surroundings.
CODES = {f"%-{code}": str(int(DATE.strftime(f"%{code}"))) for code in "dmyHIMSj"}
CODES |= {f"%{code}": DATE.strftime(f"%{code}") for code in "aAbBcdHIjmMpSUwWxXyYzZ%"}
REPLACED = "".join(f"|replace('{code}', '{text}')" for code, text in CODES.items())
DATED = f"{{% macro {CLOCK}(form) %}}{{{{ form{REPLACED} }}}}{{% endmacro %}}\n"


def apply_template(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], **variables: Any
) -> str:
    """The text that the tokenizer's chat template makes of messages.

    Raises:
        Exception: any, of the template; TooSlow, MemoryError or ValueError where it goes too far.
    """
    template = DATED + str(tokenizer.chat_template) if has_date(tokenizer) else None
    with limited():
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            chat_template=template,
            **variables,
        )
    if len(text) > LONGEST and len(text) > 10 * len(str((messages, variables))):
        raise ValueError(f"it makes {len(text):,} characters of them")
    return str(text)


def has_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template asks for today's date."""
    return isinstance(tokenizer.chat_template, str) and CLOCK in tokenizer.chat_template


class TooSlow(Exception):
    """The code was stopped."""


@contextmanager
def limited() -> Iterator[None]:
    """Raise TooSlow or MemoryError in what takes more than SECONDS or BYTES.

    Of a thread that is not the main one nothing is bounded, on Windows neither, and memory on Linux
    alone.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() != threading.main_thread():
        yield
        return
    import resource

    before: Any = signal.signal(signal.SIGVTALRM, _stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS, 0.1)  # again, should the code catch the first
    memory = resource.getrlimit(resource.RLIMIT_AS)
    try:
        if sys.platform == "linux":
            with open("/proc/self/statm", encoding="ascii") as file:
                held = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            most = min(n for n in (held + BYTES, *memory) if n != resource.RLIM_INFINITY)
            resource.setrlimit(resource.RLIMIT_AS, (most, memory[1]))
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, memory)
        signal.signal(signal.SIGVTALRM, before)


def _stop(*_: object) -> None:
    raise TooSlow(f"it takes more than {SECONDS:g} seconds")
