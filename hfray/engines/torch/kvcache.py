"""A left-padded KV cache of a batch: it grows in place, and rows join and leave."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

GROW_BY = 64  # positions; growing copies the tensor, and transformers' own layer grows with every token


class GrowingLayer(DynamicLayer):
    """One layer's keys and values, as views of buffers with room to grow. Shapes [rows, heads, positions, width]."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._buffers: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append positions; returns the keys and values of all positions, old and new."""
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self.set([key_states, value_states])
            return self.keys, self.values
        start, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        if end > self._buffers[0].shape[-2]:
            self.set([self.keys, self.values], room=key_states.shape[-2])
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., start:end, :] = states
        self.keys, self.values = (buffer[..., :end, :] for buffer in self._buffers)
        return self.keys, self.values

    def set(self, states: list[torch.Tensor], room: int = 0) -> None:
        """Copy keys and values into new buffers with room for more positions."""
        length = states[0].shape[-2]
        self._buffers = []
        for state in states:
            rows, heads, _, width = state.shape
            buffer = state.new_empty((rows, heads, length + room + GROW_BY, width))
            buffer[..., :length, :] = state
            self._buffers.append(buffer)
        self.keys, self.values = (buffer[..., :length, :] for buffer in self._buffers)


class BatchCache:
    """The cache of a left-padded batch and its attention mask [rows, positions]; all rows end at one position."""

    def __init__(self, mask: torch.Tensor) -> None:
        self.cache = Cache(layer_class_to_replicate=GrowingLayer)
        self.mask = mask

    def extend_mask(self, alive: list[bool]) -> torch.Tensor:
        """Add one position for the running rows. Finished rows must not run past the model's last position.

        Returns the mask.
        """
        column = torch.tensor(alive, dtype=self.mask.dtype, device=self.mask.device)[:, None]
        self.mask = torch.cat([self.mask, column], dim=1)
        return self.mask

    def keep(self, rows: list[int]) -> None:
        """Drop all other rows, and padding that no row needs."""
        index = torch.tensor(rows, device=self.mask.device)
        mask = self.mask.index_select(0, index)
        trim = int(mask.argmax(dim=1).min())
        self.mask = mask[:, trim:]
        for layer in self.cache.layers:
            states = [layer.keys, layer.values]
            layer.set([s.index_select(0, index.to(s.device))[..., trim:, :] for s in states])

    def merge(self, other: BatchCache) -> None:
        """Append the other batch's rows; pad both on the left to the longer length."""
        length = max(self.mask.shape[1], other.mask.shape[1])
        self.mask = torch.cat([_pad(m, length, dim=1) for m in (self.mask, other.mask)])
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            pairs = ((mine.keys, theirs.keys), (mine.values, theirs.values))
            mine.set([torch.cat([_pad(s, length, dim=2) for s in pair]) for pair in pairs])


def _pad(tensor: torch.Tensor, length: int, dim: int) -> torch.Tensor:
    missing = length - tensor.shape[dim]
    if not missing:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = missing
    return torch.cat([tensor.new_zeros(shape), tensor], dim=dim)
