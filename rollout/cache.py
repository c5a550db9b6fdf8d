"""A key-value cache with room for a whole response, so that a token is written and nothing copied.

The layers of transformers' DynamicCache grow by concatenation: every token copies all keys and
values that there are. Its static ones have room from the start, and attend over all of it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer


def cache_for(config: PretrainedConfig, tokens: int) -> DynamicCache:
    """An empty cache for sequences of at most `tokens` tokens.

    Layers of another kind than full attention, of a sliding window say, stay transformers' own.
    """
    cache = DynamicCache(config=config)
    cache.layers = [
        RoomyLayer(tokens) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


class RoomyLayer(DynamicLayer):
    """Keys and values of g rows, (g, heads, tokens so far, width): views of buffers with room."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.filled = room, 0
        self.buffers: list[Tensor] = []  # none before the first token, and where layers share them

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> Any:
        """Append, and return all there are."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.buffers = [
                x.new_empty(*x.shape[:2], self.room, x.shape[3]) for x in (key_states, value_states)
            ]
        end = self.filled + key_states.shape[2]
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, self.filled : end] = states
        self.filled = end
        return self._show()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these rows, moved to the front; `beam_idx` ascends."""
        for i, buffer in enumerate(self.buffers):
            filled = buffer[:, :, : self.filled]
            filled[: len(beam_idx)] = filled.index_select(0, beam_idx)
            self.buffers[i] = buffer[: len(beam_idx)]
        if self.buffers:
            self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (buffer[:, :, : self.filled] for buffer in self.buffers)
        return self.keys, self.values
