"""Texts become tokens: a prompt, what follows it, and which of that is trained.

The rules are those of data/encode.py; here is how each boundary between two texts is found in the
tokens of the whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data.chat import ChatTemplate, Conversation, Segment
from data.errors import USAGE, InputError
from data.join import common_prefix
from data.rows import Record
from data.transcripts import humans_turn, segments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = list[int]
CHUNK = 1024  # records tokenised by one call


@dataclass(slots=True)
class Tokens:
    """What becomes a row: tokens, and per response which of them are trained."""

    prompt: Ids
    responses: list[Ids]
    masks: list[list[bool]]
    ends: set[int]  # ids that the responses end with
    shifted: bool  # the split lies before the prompt's end
    rewritten: str


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the token that ends a response; InputError where there is none."""
    if tokenizer.eos_token_id is None:
        raise InputError(
            "the tokenizer has no eos_token, so no response could end;"
            " set eos_token in its tokenizer_config.json",
            USAGE,
        )
    return int(tokenizer.eos_token_id)


class Splitter:
    """Tokenise records and split them into prompt and responses, the EOS put on."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        ignore: frozenset[str],
        sampled: bool,
        skipped: list[InputError] | None,
    ) -> None:
        self.tokenizer, self.sampled, self.skipped = tokenizer, sampled, skipped
        self.eos = end_token(tokenizer)
        self.bos = None if tokenizer.bos_token_id is None else int(tokenizer.bos_token_id)
        self.root = self.eos if self.bos is None else self.bos
        self.chat = ChatTemplate(tokenizer, ignore)
        self.names = re.compile("|".join(map(re.escape, self.chat.special_texts)) or r"(?!)")
        self.special = self.chat.special_ids - {tokenizer.unk_token_id}  # unknown text is text
        # What the tokenizer puts behind a text by itself: mostly nothing, [EOS] or [SEP] for some.
        bare, framed = self._tokenize(["a"], False)[0], self._tokenize(["a"], True)[0]
        n = len(bare)
        starts = [i for i in range(len(framed) - n + 1) if framed[i : i + n] == bare]
        self.after = framed[starts[0] + n :] if starts else []

    def special_name(self, record: Record) -> str | None:
        """A special token that is written in the texts of the record, before their ends."""
        for text in (record.prompt, *record.responses):
            given = [text] if isinstance(text, str) else [m["content"] or "" for m in text]
            for part in map(str.rstrip, given):
                found = self.names.search(part)
                if found and (found.end() < len(part) or text is record.prompt):
                    return found[0]
        return None

    def __call__(self, records: Sequence[Record]) -> Iterator[tuple[int, Tokens]]:
        """Yield (number of the record, its tokens); a conversation may come in several."""
        for start in range(0, len(records), CHUNK):
            texts: list[tuple[int, bool, Conversation]] = []
            for number, record in enumerate(records[start : start + CHUNK], start):
                chat = not isinstance(record.prompt, str)
                with self._skipping():
                    found = self.chat.conversations(record) if chat else [self._strings(record)]
                    texts += [(number, chat, conversation) for conversation in found]
            ids: dict[bool, Iterator[Ids]] = {}
            for chat in (True, False):
                flat = [text for _, c, one in texts if c == chat for text in _beginnings(one)]
                ids[chat] = iter(self._tokenize(flat, special=not chat) if flat else [])
            for number, chat, conversation in texts:
                beginnings = [next(ids[chat]) for _ in _beginnings(conversation)]
                tokens = None
                with self._skipping():
                    tokens = self._split(conversation, beginnings, chat, records[number].where)
                if tokens is not None:
                    yield number, tokens

    @contextmanager
    def _skipping(self) -> Iterator[None]:
        try:
            yield
        except InputError as error:
            if self.skipped is None:
                raise
            self.skipped.append(error)

    def _split(self, texts: Conversation, beginnings: list[Ids], chat: bool, where: str) -> Tokens:
        """`beginnings`: tokens of the prompt alone, then of each path up to every segment's end."""
        if not chat:
            beginnings = [self._unframe(ids) for ids in beginnings]
        alone, split = beginnings[0], len(beginnings[0])
        if not chat:  # a merge that crosses the boundary is the response's
            split = common_prefix(beginnings)
        ends: set[int] = set()
        responses, masks = [], []
        following = iter(beginnings[1:])
        for path in texts.paths:
            ids, mask, before = [], [], alone[:split]
            for segment in path:
                whole = next(following)
                if whole[: len(before)] == before:
                    piece = whole[len(before) :]
                else:  # a merge crosses the boundary: the segment by itself
                    piece = self._continuation(segment.text)
                if segment is path[-1]:
                    piece, end = self._end(piece, chat)
                    ends |= end
                if segment.trained:
                    self._check_end(piece, where)
                ids += piece
                mask += [segment.trained] * len(piece)
                before = whole
            responses.append(ids)
            masks.append(mask)
        shifted = split < len(alone)
        return Tokens(
            alone[:split] or [self.root], responses, masks, ends, shifted, texts.rewritten
        )

    def _unframe(self, ids: Ids) -> Ids:
        """Without what the tokenizer adds at the end, and without a second BOS (B7)."""
        if self.after and ids[-len(self.after) :] == self.after:
            ids = ids[: -len(self.after)]
        return ids[1:] if ids[:2] == [self.bos, self.bos] else ids

    def _continuation(self, text: str) -> Ids:
        """Tokens of a text that goes on after another: without the space that some put in front."""
        ids = self._tokenize([f"{self.tokenizer.eos_token}{text}"], special=False)[0]
        return ids[1:] if ids[:1] == [self.eos] else self._tokenize([text], special=False)[0]

    def _end(self, response: Ids, chat: bool) -> tuple[Ids, set[int]]:
        """The response with exactly one EOS at its end, and the ids that end it."""
        tail = self._tail(response)
        nothing = tail == 0 if chat else not response  # but what the template writes
        if nothing and not self.sampled:
            return [], set()
        ends = {self.eos, *response[tail : tail + 1]}
        if self.eos in response[tail:]:
            return response[: response.index(self.eos, tail) + 1], ends
        return [*response, self.eos], ends

    def _tail(self, ids: Ids) -> int:
        """Where the special tokens at the end begin."""
        tail = len(ids)
        while tail > 0 and ids[tail - 1] in self.special:
            tail -= 1
        return tail

    def _check_end(self, piece: Ids, where: str) -> None:
        if not self.sampled and self.eos in piece[: self._tail(piece)]:
            raise InputError(
                f"{where}: the end token {self.tokenizer.eos_token} stands inside a response, and"
                " what follows it would be trained after the end; split it, or remove the row"
            )

    def _strings(self, record: Record) -> Conversation:
        """A record of strings: the texts as they are, a transcript turn by turn."""
        prompt, paths = record.prompt, []
        for response in record.responses:
            if not isinstance(prompt, str) or not isinstance(response, str):
                raise InputError(
                    f"{record.where}: a string and messages as prompt and response; make both alike"
                )
            if response.rstrip().endswith(self.chat.special_texts):
                response = response.rstrip()  # nothing follows an end token
            alone = record.rejected is None and not self.sampled
            if alone and humans_turn(prompt, response):
                paths.append([Segment(*part) for part in segments(prompt, response)])
            else:
                paths.append([Segment(response, True)])
        return Conversation(str(prompt), paths)

    def _tokenize(self, texts: list[str], special: bool) -> list[Ids]:
        batch = self.tokenizer(
            texts,
            add_special_tokens=special,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return [list(ids) for ids in batch["input_ids"]]


def _beginnings(texts: Conversation) -> Iterator[str]:
    """The prompt, then for each path the text up to the end of every segment."""
    yield texts.prompt
    for path in texts.paths:
        text = texts.prompt
        for segment in path:
            text += segment.text
            yield text
