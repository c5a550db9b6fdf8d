"""A conversation as the chat template writes it: the prompt, and what answers it.

The prompt is what inference renders, `apply_chat_template(..., add_generation_prompt=True)`, or
`continue_final_message=True` where it ends with the assistant's own words. A response is what the
template writes after it once the answer is there:

    prompt     <|im_start|>user\\nhi<|im_end|>\\n<|im_start|>assistant\\n
    response   hello<|im_end|>

Not every template is so plain. Some write a prompt otherwise once an answer follows it: they move
the system prompt, trim what was said before, close a <think> that the prompt leaves open. And some
leave out a part of the answer. Then the response is the answer as it was given, and behind it what
the template writes behind an answer. So what is trained always follows what inference renders, and
always holds what the user gave; what cannot have both is refused. No word of a user, a system
prompt or a tool is ever part of a response's text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from data.errors import InputError
from data.rendering import Conversation, NotOnePath, Renderer, Segment, Template, messages_of
from data.rows import Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ChatTemplate", "Conversation", "Segment"]

Rendered = TypeVar("Rendered")
TRIALS = 16  # rows that are rendered twice


class ChatTemplate:
    """The chat template of a tokenizer.

    `ignore`: message keys that may be missing from what it writes.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, ignore: frozenset[str] = frozenset()
    ) -> None:
        added = tokenizer.added_tokens_decoder
        special = {i: str(token) for i, token in added.items() if token.special}
        special |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
        self.special_ids = frozenset(special)
        self.special_texts = tuple(special.values())
        self.template = Template(tokenizer, self.special_texts, ignore)
        self._trials = TRIALS

    def prompt(self, record: Record) -> str:
        """The prompt of a record of messages, as inference renders it."""
        return self._twice(self._prompt, record)

    def conversations(self, record: Record) -> list[Conversation]:
        """One, or for a conversation that is no single path one a turn of the assistant.

        Raises:
            InputError: naming the row, the column and the reason.
        """
        return self._twice(self._conversations, record)

    def _twice(self, render: Callable[[Record], Rendered], record: Record) -> Rendered:
        """Render; the first rows twice, to see a template that draws from something else."""
        found = render(record)
        if self._trials:
            self._trials -= 1
            if render(record) != found:
                raise InputError(
                    f"{record.where}: the chat template writes something else the second time; take"
                    " one without random choices and clocks (--chat_template)"
                )
        return found

    def _prompt(self, record: Record) -> str:
        return Renderer(self.template, record).prompt(messages_of(record.prompt))

    def _conversations(self, record: Record) -> list[Conversation]:
        renderer = Renderer(self.template, record)
        if any(isinstance(text, str) for text in (record.prompt, *record.responses)):
            raise InputError(
                f"{record.where}: a string and messages as prompt and response; make both alike"
            )
        responses = [messages_of(response) for response in record.responses]
        prompt = renderer.prompt(messages_of(record.prompt))
        paths = []
        for response, column in zip(responses, ("chosen", "rejected"), strict=False):
            renderer.column = column
            try:
                paths.append(renderer.path(prompt, response))
            except NotOnePath as error:
                if len(responses) == 1:
                    return list(renderer.turn_by_turn(response))
                raise InputError(
                    f"{record.where}:{column}: the chat template writes earlier turns otherwise"
                    f" once later ones follow ({error}), so several turns are no one response;"
                    " --train_on last, or give the last turn alone"
                ) from None
        return [Conversation(prompt, paths, renderer.rewritten)]
