"""From logits to the next token of each row, with transformers' own warpers and a random generator per row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hfray.engines.base import Request


@dataclass(slots=True)
class Row:
    """A running request: its generated tokens and its random generator."""

    request: Request
    tokens: list[int] = field(default_factory=list)
    generator: torch.Generator | None = None

    @property
    def ids(self) -> list[int]:
        return self.request.prompt_ids + self.tokens


class Sampler:
    """Picks tokens. Each row of a batch has its own settings."""

    def __init__(self, end_ids: set[int]) -> None:
        self._end_ids = sorted(end_ids)

    def pick(self, logits: torch.Tensor, rows: list[Row]) -> list[int]:
        """The next token id of each row. `logits` are [rows, vocabulary] and are not modified."""
        logits = logits.float()
        if any(self._shapes_logits(row) for row in rows):
            logits = torch.stack([self._process(row, logits[i]) for i, row in enumerate(rows)])
        picked = logits.argmax(dim=-1).tolist()
        for i, row in enumerate(rows):
            if row.request.params.sampling:
                picked[i] = self._draw(logits[i], row)
        return picked

    def logprobs(self, logits: torch.Tensor, row: Row, token: int) -> tuple[float, list[tuple[int, float]]]:
        """The token's log-probability under the model, and the likeliest tokens with theirs."""
        values = torch.log_softmax(logits.float(), dim=-1)
        top = torch.topk(values, max(1, row.request.params.logprobs or 0))
        likeliest = list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        return float(values[token]), likeliest[: row.request.params.logprobs]

    def _shapes_logits(self, row: Row) -> bool:
        params = row.request.params
        return bool(
            params.sampling
            or params.repetition_penalty
            or params.no_repeat_ngram_size
            or params.presence_penalty
            or params.frequency_penalty
            or len(row.tokens) < params.min_new_tokens
        )

    def _process(self, row: Row, logits: torch.Tensor) -> torch.Tensor:
        params, logits = row.request.params, logits.clone()
        if len(row.tokens) < params.min_new_tokens:
            logits[self._end_ids] = float("-inf")
        if row.tokens and (params.presence_penalty or params.frequency_penalty):
            ids, counts = torch.tensor(row.tokens, device=logits.device).unique(return_counts=True)
            logits[ids] -= (params.presence_penalty or 0.0) + (params.frequency_penalty or 0.0) * counts
        processors = LogitsProcessorList()
        if params.repetition_penalty:
            processors.append(RepetitionPenaltyLogitsProcessor(float(params.repetition_penalty)))
        if params.no_repeat_ngram_size:
            processors.append(NoRepeatNGramLogitsProcessor(params.no_repeat_ngram_size))
        if params.sampling:
            if params.temperature not in (None, 1.0):
                processors.append(TemperatureLogitsWarper(float(params.temperature)))
            if params.top_k:
                processors.append(TopKLogitsWarper(params.top_k))
            if params.top_p is not None and params.top_p < 1.0:
                processors.append(TopPLogitsWarper(params.top_p))
            if params.min_p is not None:
                processors.append(MinPLogitsWarper(params.min_p))
        if not processors:
            return logits
        ids = cast(torch.LongTensor, torch.tensor([row.ids], device=logits.device))
        return processors(ids, cast(torch.FloatTensor, logits[None]))[0]

    def _draw(self, logits: torch.Tensor, row: Row) -> int:
        if row.generator is None:
            row.generator = torch.Generator(device=logits.device).manual_seed(row.request.seed)
        noise = torch.empty_like(logits).exponential_(generator=row.generator)
        return int((torch.softmax(logits, dim=-1) / noise).argmax())
