"""Holds the rows of a batch to the forms of their answers, as a mask over the logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from hfray.engines.base import Request
from hfray.engines.guides import Guides
from hfray.engines.torch.transfer import send, to_device

if TYPE_CHECKING:
    from llguidance import LLExecutor

WORD = 32  # tokens in one integer of a mask


class TokenMasks:
    """Masks the logits of the rows whose answers have a form. Rows with and without one share a batch."""

    def __init__(self, guides: Guides) -> None:
        self._guides = guides
        self._executor: LLExecutor | None = None

    def apply(self, logits: torch.Tensor, requests: Sequence[Request | None]) -> torch.Tensor:
        """The logits [rows, vocabulary], minus infinity for every token that a row's form does not allow next.

        Returns the same tensor if no row has a form, else a new one. None is a row whose token is not needed.
        """
        numbered = [(request, row) for row, request in enumerate(requests) if request is not None]
        guided = [(guide, row) for request, row in numbered if (guide := self._guides.guide(request)) is not None]
        if not guided:
            return logits
        if self._executor is None:
            from llguidance import LLExecutor

            self._executor = LLExecutor()
        words = -(-self._guides.tokenizer.vocab_size // WORD)
        bits = torch.zeros((len(requests), words), dtype=torch.int32)
        self._executor.unsafe_compute_mask_ptr(guided, bits.data_ptr(), words * 4, len(requests))
        allowed = _unpacked(send(bits[[row for _, row in guided]], logits.device), logits.shape[1])
        rows = to_device([row for _, row in guided], logits.device, torch.long)
        masked = logits.clone()
        masked[rows] = masked[rows].masked_fill(~allowed, float("-inf"))
        return masked


def _unpacked(bits: torch.Tensor, width: int) -> torch.Tensor:
    """A mask of bits [rows, words] as booleans [rows, width]; tokens beyond the mask are not allowed."""
    powers = torch.ones(8, dtype=torch.uint8, device=bits.device) << torch.arange(
        8, dtype=torch.uint8, device=bits.device
    )
    flags = (bits.view(torch.uint8).unsqueeze(-1) & powers).ne(0).flatten(1)[:, :width]
    return torch.nn.functional.pad(flags, (0, width - flags.shape[1]))
