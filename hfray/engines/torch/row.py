"""A request that the engine runs, and its tokens so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hfray.engines.base import Request


@dataclass(slots=True, eq=False)
class Row:
    """A running request and its generated tokens.

    Attributes:
        passed: how many times the engine has started other rows first, because this one needs much memory.
        samples: whether its tokens are drawn.
        logprobs: number of likeliest tokens to report; None: report no log-probabilities.
    """

    request: Request
    tokens: list[int] = field(default_factory=list)
    passed: int = 0
    samples: bool = field(init=False)
    logprobs: int | None = field(init=False)
    _penalized: bool = field(init=False)
    _min_new_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        params = self.request.params
        self.samples, self.logprobs, self._min_new_tokens = params.sampling, params.logprobs, params.min_new_tokens
        self._penalized = bool(
            params.repetition_penalty
            or params.no_repeat_ngram_size
            or params.presence_penalty
            or params.frequency_penalty
        )

    @property
    def ids(self) -> list[int]:
        """The tokens of the prompt and of the completion so far."""
        return self.request.prompt_ids + self.tokens

    @property
    def length(self) -> int:
        """The number of `ids`."""
        return len(self.request.prompt_ids) + len(self.tokens)

    @property
    def penalized(self) -> bool:
        """Whether `penalize` would change the row's next logits."""
        return self._penalized or len(self.tokens) < self._min_new_tokens


def padded_ids(rows: Sequence[Row], pad: int) -> np.ndarray:
    """The rows' tokens with padding on the left [rows, 1 + positions]; the first column is the amount of padding."""
    length = max(row.length for row in rows)
    table = np.full((len(rows), 1 + length), pad, dtype=np.int64)
    for i, row in enumerate(rows):
        table[i, 0] = length - row.length
        table[i, 1 + length - row.length :] = row.ids
    return table
