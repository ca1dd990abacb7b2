"""The KV cache of a left-padded batch. It grows in place, and new rows take the slots of finished rows.

The cache is a rectangle of slots and positions. All rows end at the same position, so a row that starts later only
fills the end of its slot.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers.cache_utils import Cache, DynamicLayer

from hfray.engines.torch.transfer import to_device

GROW_BY = 64  # positions; growing copies the tensors, and transformers' own layer copies them for every token


class GrowingLayer(DynamicLayer):
    """One layer's keys and values, as views of buffers with room to grow. Shapes [slots, heads, positions, width]."""

    # transformers' class allows None, which this class has only before the first `update`.
    keys: torch.Tensor  # pyright: ignore[reportIncompatibleVariableOverride]
    values: torch.Tensor  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._buffers: list[torch.Tensor] = []
        self._start = self._end = 0  # the positions in use

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append positions; returns the keys and values of all positions, old and new."""
        states, added = (key_states, value_states), key_states.shape[-2]
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self._buffers = [s.new_empty((*s.shape[:2], added + GROW_BY, s.shape[-1])) for s in states]
        elif self._end + added > self.room_end:
            self._resize(self._buffers[0].shape[0], 0, added)
        for buffer, state in zip(self._buffers, states, strict=True):
            buffer[..., self._end : self._end + added, :] = state
        return self._view(self._start, self._end + added)

    @property
    def room_end(self) -> int:
        """The number of positions that the buffers hold."""
        return self._buffers[0].shape[-2]

    @property
    def full(self) -> bool:
        """Whether the next position needs larger buffers."""
        return self._end == self.room_end

    def trim(self, positions: int) -> None:
        """Forget the first positions. Copies nothing."""
        self._view(self._start + positions, self._end)

    def keep(self, slots: torch.Tensor) -> None:
        """Keep only these slots, in one copy."""
        self._buffers = [buffer[:, :, self._start :].index_select(0, slots) for buffer in self._buffers]
        self._view(0, self._end - self._start)

    def put(self, slots: torch.Tensor, number: int, other: GrowingLayer) -> None:
        """Write another layer's rows into these slots. Copies the rows that stay only if the buffers are too small.

        Args:
            number: slots afterwards; at least as many as now.
        """
        before = max(0, other._end - other._start - (self._end - self._start))  # positions to add on the left
        if number > self._buffers[0].shape[0] or before > self._start:
            self._resize(number, before, 0)
        else:
            self._view(self._start - before, self._end)
        for mine, theirs in zip((self.keys, self.values), (other.keys, other.values), strict=True):
            missing = mine.shape[-2] - theirs.shape[-2]
            if before:  # masked positions must be finite, because attention multiplies them by 0
                mine[..., :before, :] = 0
            mine.index_copy_(0, slots, torch.nn.functional.pad(theirs, (0, 0, missing, 0)))

    def _resize(self, number: int, before: int, room: int) -> None:
        """Copy the slots into buffers of `number` slots, with positions before and after the present ones."""
        length, old, new = self._end - self._start, (self.keys, self.values), []
        for state in old:
            slots, heads, _, width = state.shape
            buffer = state.new_empty((number, heads, before + length + room + GROW_BY, width))
            buffer[:slots, :, before : before + length] = state
            new.append(buffer)
        self._buffers = new
        self._view(0, before + length)

    def _view(self, start: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        self._start, self._end = start, end
        self.keys, self.values = (buffer[..., start:end, :] for buffer in self._buffers)
        return self.keys, self.values


class BatchCache:
    """The KV cache of a left-padded batch, and its attention mask [slots, positions]. All rows end at the same position.

    Args:
        mask: int64 [rows, positions]: 1 for the tokens of a prompt, 0 for the padding before them.
    """

    def __init__(self, mask: torch.Tensor) -> None:
        self.cache = Cache(layer_class_to_replicate=GrowingLayer)
        self.mask = mask
        self._running: torch.Tensor | None = None  # [slots, 1]: 0 for finished rows; None: all rows run

    @property
    def layers(self) -> list[GrowingLayer]:
        """The cache's layers; empty before the model's first forward."""
        return cast(list[GrowingLayer], self.cache.layers)

    @property
    def length(self) -> int:
        """The number of positions."""
        return self.mask.shape[1]

    @property
    def full(self) -> bool:
        """Whether the next position needs larger buffers."""
        return any(layer.full for layer in self.layers)

    def set_running(self, running: list[bool]) -> None:
        """Say which rows run. A finished row sees only its newest position, so it needs no old ones and stays at
        position 0."""
        device, self._running = self.mask.device, None
        if not all(running):
            self._running = to_device(running, device, self.mask.dtype)[:, None]

    def extend(self) -> torch.Tensor:
        """Add a position to the mask. Returns the position number of each row [slots, 1]."""
        mask = self.mask if self._running is None else self.mask * self._running
        self.mask = torch.cat([mask, mask.new_ones((mask.shape[0], 1))], dim=1)
        return self.mask.sum(dim=1, keepdim=True) - 1

    def trim(self, length: int) -> None:
        """Keep only the last `length` positions. Copies nothing."""
        if length < self.length:
            for layer in self.layers:
                layer.trim(self.length - length)
            self.mask = self.mask[:, self.length - length :]

    def keep(self, slots: list[int]) -> None:
        """Keep only these slots; they must run."""
        index = _Index(slots)
        for layer in self.layers:
            layer.keep(index.on(layer.device))
        self.mask = self.mask.index_select(0, index.on(self.mask.device))
        self._running = None

    def put(self, slots: list[int], number: int, other: BatchCache) -> None:
        """Write the other batch's rows into these slots. Both batches are padded on the left to the greater length.

        Args:
            number: slots afterwards; at least as many as now.
        """
        index, length = _Index(slots), max(self.length, other.length)
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            mine.put(index.on(mine.device), number, theirs)
        pad = torch.nn.functional.pad
        mask = pad(self.mask, (length - self.length, 0, 0, number - self.mask.shape[0]))
        self.mask = mask.index_copy(0, index.on(mask.device), pad(other.mask, (length - other.length, 0)))


class _Index:
    """Slot numbers on each device that asks for them."""

    def __init__(self, slots: list[int]) -> None:
        self._slots = slots
        self._copies: dict[torch.device, torch.Tensor] = {}

    def on(self, device: torch.device) -> torch.Tensor:
        if device not in self._copies:
            self._copies[device] = to_device(self._slots, device, torch.long)
        return self._copies[device]
