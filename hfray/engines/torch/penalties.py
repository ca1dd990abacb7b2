"""Penalties and bans: what the tokens of a row so far change in its next logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from hfray.engines.torch.row import Row
from hfray.engines.torch.transfer import to_device


class _Cells:
    """Cells of a matrix, each with a number. They reach the device in two copies."""

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._ids: list[np.ndarray] = []
        self._numbers: list[np.ndarray] = []

    def add(self, row: int, ids: np.ndarray, numbers: np.ndarray | float) -> None:
        self._rows.append(row)
        self._ids.append(ids)
        self._numbers.append(np.broadcast_to(np.asarray(numbers, dtype=np.float32), ids.shape))

    def on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """Row and column indices and the numbers; None if there are none."""
        if not self._rows:
            return None
        rows = np.repeat(np.array(self._rows, dtype=np.int64), [len(ids) for ids in self._ids])
        cells = to_device(np.stack([rows, np.concatenate(self._ids)]), device, torch.long)
        return cells[0], cells[1], to_device(np.concatenate(self._numbers), device, torch.float32)


def penalize(scores: torch.Tensor, rows: Sequence[Row], end_ids: Sequence[int]) -> None:
    """Change the float scores [rows, vocabulary] in place, in the order of transformers' processors.

    Args:
        end_ids: tokens that are banned before a row has `min_new_tokens`.
    """
    subtracted, divided, banned = _Cells(), _Cells(), _Cells()
    for i, row in enumerate(rows):
        params, ends = row.request.params, np.array(end_ids, dtype=np.int64)
        if len(row.tokens) < params.min_new_tokens and len(ends):
            banned.add(i, ends, 0.0)
        if row.tokens and (params.presence_penalty or params.frequency_penalty):
            ids, counts = np.unique(row.tokens, return_counts=True)
            subtracted.add(i, ids, (params.presence_penalty or 0.0) + (params.frequency_penalty or 0.0) * counts)
        if params.repetition_penalty:
            divided.add(i, np.unique(row.ids), params.repetition_penalty)
        if params.no_repeat_ngram_size:
            ids = _ends_of_repeated_ngrams(row.ids, params.no_repeat_ngram_size)
            if len(ids):
                banned.add(i, ids, 0.0)
    # Each cell occurs once in a list, so the order of the writes does not matter.
    if (cells := subtracted.on(scores.device)) is not None:
        at, ids, numbers = cells
        scores[at, ids] -= numbers
    if (cells := divided.on(scores.device)) is not None:
        at, ids, numbers = cells
        found = scores[at, ids]
        scores[at, ids] = torch.where(found < 0, found * numbers, found / numbers)
    if (cells := banned.on(scores.device)) is not None:
        at, ids, _ = cells
        scores.index_put_((at, ids), scores.new_full((), float("-inf")))


def _ends_of_repeated_ngrams(ids: list[int], size: int) -> np.ndarray:
    """The tokens that would complete an n-gram of `size` tokens that `ids` contain already."""
    if len(ids) < size:
        return np.empty(0, dtype=np.int64)
    array = np.array(ids, dtype=np.int64)
    starts = np.ones(len(array) - size + 1, dtype=bool)
    for offset in range(size - 1):
        starts &= array[offset : offset + len(starts)] == array[len(array) - size + 1 + offset]
    return np.unique(array[size - 1 :][starts])
