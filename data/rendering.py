"""One record as a chat template writes it: its prompt, and what follows it turn by turn.

data/chat.py says what is rendered and why; here is how.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from data.errors import InputError
from data.join import common_prefix
from data.messages import Messages, Text
from data.readers import short
from data.rows import Record
from data.template import apply_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARK = "\ue000\ue001"  # private-use characters: stand where a text would, to see where it goes
# Keys that link a tool's answer to its call; many templates have no use for them.
LINKS = {"tool_call_id", "tool_name"}


class Template(NamedTuple):
    """A chat template, and the tokenizer that has it."""

    tokenizer: PreTrainedTokenizerBase
    special_texts: tuple[str, ...]  # of its special tokens
    ignore: frozenset[str]  # message keys that may be missing from what it writes


class Segment(NamedTuple):
    text: str
    trained: bool


class Conversation(NamedTuple):
    """One row to be tokenised: a prompt, and for each response the texts that follow it."""

    prompt: str
    paths: list[list[Segment]]
    rewritten: str = ""  # where the template writes the prompt otherwise once an answer follows


class NotOnePath(Exception):
    """The template writes earlier turns otherwise once later ones follow."""


class Renderer:
    """The template with what one record gives it."""

    def __init__(self, template: Template, record: Record) -> None:
        self.template, self.record, self.column = template, record, "prompt"
        self.rewritten = ""
        if not template.tokenizer.chat_template:
            raise InputError(
                f"{record.where}:prompt: these are chat messages and the tokenizer has no chat"
                " template; take an instruct model's tokenizer, give one by --chat_template FILE,"
                " or give prompt and responses as strings"
            )
        self._check_variables()

    # ---- rendering

    def render(self, messages: Messages, **how: Any) -> str:
        """The template's text; whatever goes wrong in a template is one line."""
        how = {"tools": self.record.tools, **self.record.template_kwargs, **how}
        try:
            return apply_template(self.template.tokenizer, messages, **how)
        except Exception as error:  # a template is a program, and may raise anything
            reason = " ".join(f"{error}".split()) or type(error).__name__
            raise InputError(
                f"{self.record.where}:{self.column}: the chat template refuses these messages"
                f" ({reason}); change them or the template"
            ) from error

    def prompt(self, messages: Messages) -> str:
        if messages[-1]["role"] == "assistant":
            if messages[-1].get("tool_calls"):
                self.refuse("the prompt ends with a call of the assistant; give the tool's answer")
            if not (messages[-1]["content"] or "").strip():
                self.refuse("the prompt ends with an empty message of the assistant; leave it out")
            text = self.render(messages, continue_final_message=True)
        else:
            text = self.render(messages, add_generation_prompt=True)
            if self.record.tools and "tools" not in self.template.ignore:
                if text == self.render(messages, add_generation_prompt=True, tools=None):
                    self.refuse("the chat template does not write the tools; change the template")
        self._check_keys(messages)
        return text

    def path(self, prompt: str, response: Messages) -> list[Segment]:
        """The texts that follow the prompt, turn by turn, as one text.

        Raises:
            NotOnePath: the texts before a turn are not what was rendered before.
        """
        text, before = prompt, list(messages_of(self.record.prompt))
        segments: list[Segment] = []
        for message in response:
            if message["role"] == "assistant":
                if segments:
                    asked = self.prompt(before)
                    ended = self._shared_end(text, asked)
                    if ended < len(text):  # a template that ends the last turn with one token more
                        last = segments.pop().text
                        segments.append(Segment(last[: len(last) - len(text) + ended], True))
                    segments.append(Segment(asked[ended:], False))
                    text = asked
                segments.append(Segment(self.answer(before, message, text), True))
                text += segments[-1].text
            before.append(message)
        return segments

    def _shared_end(self, text: str, asked: str) -> int:
        """How much of the text goes on in the next prompt: all, or all but special tokens after
        the one that ends the turn."""
        n = common_prefix([text, asked])
        if n == len(text):
            return n
        specials = sorted(self.template.special_texts, key=len, reverse=True)
        ends = [text.rfind(special, 0, n) + len(special) for special in specials]
        kept = max(
            (end for end in ends if text[:end].endswith(self.template.special_texts)), default=0
        )
        rest = text[kept:]
        for special in specials:
            rest = rest.replace(special, "")
        if rest.strip():
            raise NotOnePath(_difference(text, asked))
        return kept

    def turn_by_turn(self, response: Messages) -> Iterator[Conversation]:
        """Every turn of the assistant with the prompt that inference would render for it."""
        before = list(messages_of(self.record.prompt))
        for message in response:
            if message["role"] == "assistant":
                self.rewritten = ""
                prompt = self.prompt(before)
                answer = Segment(self.answer(before, message, prompt), True)
                yield Conversation(prompt, [[answer]], self.rewritten)
            before.append(message)

    # ---- one turn of the assistant

    def answer(self, before: Messages, message: dict[str, Any], prompt: str) -> str:
        """What is trained: the answer with all that the template writes around it."""
        messages = _with_answer(before, message, message["content"])
        whole = self.render(messages)
        self._check_keys(messages[-1:], messages[:-1])
        if whole.startswith(prompt):
            answer = whole[len(prompt) :]
            if self._holds(answer, message, prompt) and not self._leaks(before, message, answer):
                return self._end(answer)
        if not self.rewritten:
            self.rewritten = _difference(prompt, whole)

        # The answer verbatim, and behind it what the template writes behind an answer.
        marked = self.render(_with_answer(before, message, MARK))
        head, mark, tail = marked.rpartition(MARK)
        if not mark:
            self.refuse("the chat template does not write the answer; change the template")
        bare = {"role": "assistant", "content": MARK}
        if len(message) > 2 and not marked.startswith(prompt):
            without = self.render(_with_answer(before, bare, MARK)).rpartition(MARK)[0]
            if without != head:
                self.refuse(
                    "what the chat template writes before the answer does not follow what it writes"
                    f" for inference ({_difference(prompt, whole)}); change the template"
                )
        if self._leaks(before, message, tail):
            self.refuse("the chat template writes others' words after the answer; change it")
        return self._end(_after_opening_tag(prompt, message["content"] or "") + tail)

    def _holds(self, answer: str, message: dict[str, Any], prompt: str) -> bool:
        """Whether all of the content is in the answer, white space aside."""
        tag = _opening_tag(prompt)
        return _squeezed(message["content"] or "") in _squeezed(tag + answer)

    def _leaks(self, before: Messages, message: dict[str, Any], text: str) -> bool:
        """Whether a text has words in it that others said."""
        rest = text.replace((message["content"] or "").strip() or "\0", "")
        said = [m["content"].strip() for m in before if m["content"] and m["role"] != "assistant"]
        if not any(content and content in rest for content in said):
            return False
        # It may be chance (an "a" is in "assistant"): mark what others say, and look for the marks.
        marked = [
            m if m["role"] == "assistant" else m | {"content": f"{m['content'] or ''}{MARK}"}
            for m in before
        ]
        whole = self.render(_with_answer(marked, message, message["content"]))
        prompt = self.prompt(marked)
        if whole.startswith(prompt):
            return MARK in whole[len(prompt) :]
        return MARK in whole.rpartition((message["content"] or "").strip())[2]

    def _end(self, answer: str) -> str:
        """Without the white space that a template writes after the last special token."""
        stripped = answer.rstrip()
        return stripped if stripped.endswith(self.template.special_texts) else answer

    # ---- what the template must not pass over

    def _check_keys(self, messages: Messages, before: Messages | None = None) -> None:
        """Refuse a key of a message that changes nothing in what the template writes of it."""
        before = before or []
        for number, message in enumerate(messages):
            links = LINKS | ({"name"} if message["role"] == "tool" else set())
            for key in set(message) - {"role", "content"} - links - self.template.ignore:
                until = [*before, *messages[: number + 1]]
                if not self._matters(until, key) and not self._matters([*before, *messages], key):
                    self.refuse(
                        f"the chat template does not write the {key} of the {message['role']}'s"
                        f" message; take a template that does (--chat_template), or --ignore {key}"
                    )

    def _matters(self, messages: Messages, key: str) -> bool:
        without = [{k: v for k, v in m.items() if k != key} for m in messages]
        try:
            return self.render(messages) != self.render(without)
        except InputError:  # a conversation that ends there is refused
            return False

    def _check_variables(self) -> None:
        """Refuse tools, and variables for the template, that it does not know."""
        taken = inspect.signature(self.template.tokenizer.apply_chat_template).parameters
        for name in self.record.template_kwargs:
            if name in taken or name == "messages":
                reason = "an argument of apply_chat_template, and no variable of the template"
                raise InputError(f"{self.record.where}:chat_template_kwargs: {name}: {reason}")
        names = [*self.record.template_kwargs, *(["tools"] if self.record.tools else [])]
        source = str(self.template.tokenizer.chat_template)
        for name in set(names) - self.template.ignore:
            if not re.search(rf"\b{re.escape(name)}\b", source):
                column = "tools" if name == "tools" else f"chat_template_kwargs: {name}"
                raise InputError(
                    f"{self.record.where}:{column}: the chat template does not read it; take one"
                    f" that does (--chat_template), or --ignore {name}"
                )

    def refuse(self, reason: str) -> None:
        raise InputError(f"{self.record.where}:{self.column}: {reason}")


def _with_answer(before: Messages, message: dict[str, Any], content: Any) -> Messages:
    """The conversation with an answer, which continues a message of the assistant before it."""
    if before and before[-1]["role"] == "assistant":
        return [*before[:-1], {**before[-1], **message, "content": before[-1]["content"] + content}]
    return [*before, {**message, "content": content}]


def _opening_tag(prompt: str) -> str:
    """A tag that the prompt leaves open at its end, such as <think>."""
    found = re.search(r"<[a-z_]+>(?=\s*\Z)", prompt)
    return found[0] if found else ""


def _after_opening_tag(prompt: str, content: str) -> str:
    """The content, without the tag that it opens with if the prompt has opened it already."""
    tag = _opening_tag(prompt)
    if not tag or not content.lstrip().startswith(tag):
        return content
    rest, space = content.lstrip()[len(tag) :], prompt[prompt.rindex(tag) + len(tag) :]
    return rest.removeprefix(space)


def _difference(first: str, second: str) -> str:
    """Where two renderings begin to differ."""
    n = common_prefix([first, second])
    start = max(n - 20, 0)
    return f"{short(first[start : n + 20])} against {short(second[start : n + 20])}"


def messages_of(text: Text) -> Messages:
    assert not isinstance(text, str)
    return text


def _squeezed(text: str) -> str:
    return "".join(text.split())
