"""The KV cache of a left-padded batch. The cache grows in place; rows join and leave the batch."""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers.cache_utils import Cache, DynamicLayer

GROW_BY = 64  # positions; growing copies the tensors, and transformers' own layer copies them for every token


class GrowingLayer(DynamicLayer):
    """One layer's keys and values, as views of buffers with room to grow. Shapes [rows, heads, positions, width]."""

    # transformers' class allows None, which this class has only before the first `update`.
    keys: torch.Tensor  # pyright: ignore[reportIncompatibleVariableOverride]
    values: torch.Tensor  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
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
    """The KV cache of a left-padded batch, and its attention mask [rows, positions]. All rows end at the same position."""

    def __init__(self, mask: torch.Tensor) -> None:
        self.cache = Cache(layer_class_to_replicate=GrowingLayer)
        self.mask = mask

    @property
    def layers(self) -> list[GrowingLayer]:
        """The cache's layers; empty before the model's first forward."""
        return cast(list[GrowingLayer], self.cache.layers)

    def extend_mask(self, alive: list[bool]) -> torch.Tensor:
        """Add a position: visible in running rows, masked in finished rows. Returns the mask.

        The model numbers only the visible positions, so finished rows never exceed its last position.
        """
        column = torch.tensor(alive, dtype=self.mask.dtype, device=self.mask.device)[:, None]
        self.mask = torch.cat([self.mask, column], dim=1)
        return self.mask

    def keep(self, rows: list[int]) -> None:
        """Keep only these rows, and drop padding that none of them needs."""
        index = torch.tensor(rows, device=self.mask.device)
        mask = self.mask.index_select(0, index)
        trim = int(mask.argmax(dim=1).min())
        self.mask = mask[:, trim:]
        for layer in self.layers:
            states = [layer.keys, layer.values]
            layer.set([s.index_select(0, index.to(s.device))[..., trim:, :] for s in states])

    def merge(self, other: BatchCache) -> None:
        """Append the other batch's rows. Both batches are padded on the left to the greater length."""
        length = max(self.mask.shape[1], other.mask.shape[1])
        self.mask = torch.cat([_pad(m, length, dim=1) for m in (self.mask, other.mask)])
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            pairs = ((mine.keys, theirs.keys), (mine.values, theirs.values))
            mine.set([torch.cat([_pad(s, length, dim=2) for s in pair]) for pair in pairs])


def _pad(tensor: torch.Tensor, length: int, dim: int) -> torch.Tensor:
    missing = length - tensor.shape[dim]
    if not missing:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = missing
    return torch.cat([tensor.new_zeros(shape), tensor], dim=dim)
