"""From logits to the next token of each row, for all rows of a batch together and with one wait for the device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from hfray.engines.torch.noise import gumbel_noise, noise_keys
from hfray.engines.torch.penalties import penalize
from hfray.engines.torch.row import Row
from hfray.engines.torch.transfer import to_device, to_host

BLOCK = 256  # tokens of the vocabulary; a draw picks a block, and then a token of the block
NUCLEUS = 1024  # likeliest tokens that top_p looks at; if they hold too little probability, it sorts all tokens
CHUNK_VALUES = 1 << 26  # logits that are processed together, so that temporary tensors stay small

Logprob = tuple[float, list[tuple[int, float]]]
Numbered = list[tuple[int, Row]]  # rows with their indices in the batch


@dataclass(slots=True)
class Picked:
    """The next tokens.

    Attributes:
        on_device: int64 [rows], on the device of the logits.
        tokens: the same on the CPU.
        logprobs: by the index of each row that asks for it: the token's log-probability under the model, and the
            likeliest tokens with theirs.
    """

    on_device: torch.Tensor
    tokens: list[int]
    logprobs: dict[int, Logprob]


class Sampler:
    """Picks tokens. Each row has its own settings, and its own random numbers from its seed and its number of tokens."""

    def __init__(self, end_ids: set[int]) -> None:
        self._end_ids = sorted(end_ids)

    def pick(self, logits: torch.Tensor, rows: Sequence[Row | None], allowed: torch.Tensor | None = None) -> Picked:
        """The next token of each row.

        Args:
            logits: [rows, vocabulary]; not modified.
            rows: None for a row whose token is not needed.
            allowed: the logits with minus infinity for tokens that may not be picked; None: all tokens may be.
        """
        model_logits, logits = logits, logits if allowed is None else allowed
        running = [(i, row) for i, row in enumerate(rows) if row is not None]
        sampled = [(i, row) for i, row in running if row.samples]
        reported = [(i, row) for i, row in running if row.logprobs is not None]
        if len(sampled) == len(rows):
            tokens = torch.empty(len(rows), dtype=torch.long, device=logits.device)
        else:
            tokens = logits.argmax(dim=-1)
        for part in _chunks([(i, row) for i, row in running if row.penalized and not row.samples], logits):
            index = _index(part, logits.device)
            tokens[index] = self._scores(logits[index], part).argmax(dim=-1)
        cut = self._draw(logits, sampled, tokens, NUCLEUS)
        host, *found = to_host(tokens, *cut, *_logprobs(model_logits, tokens, reported))
        again = [pair for pair, flag in zip(sampled, found.pop(0), strict=True) if flag] if cut else []
        if again:  # flat distributions; this second wait is rare
            self._draw(logits, again, tokens, logits.shape[1])
            host, *found = to_host(tokens, *_logprobs(model_logits, tokens, reported))
        return Picked(tokens, host.tolist(), _read_logprobs(reported, found))

    def _scores(self, logits: torch.Tensor, part: Numbered, width: int | None = None) -> torch.Tensor:
        """The penalized logits as a float32 copy, filled up to `width` columns with -inf."""
        vocabulary = logits.shape[1]
        scores = logits.new_empty((len(part), width or vocabulary), dtype=torch.float32)
        scores[:, vocabulary:] = float("-inf")
        scores[:, :vocabulary] = logits
        rows = [row for _, row in part]
        if any(row.penalized for row in rows):
            penalize(scores, rows, self._end_ids)
        return scores

    def _draw(self, logits: torch.Tensor, rows: Numbered, tokens: torch.Tensor, nucleus: int) -> list[torch.Tensor]:
        """Write the drawn tokens of these rows into `tokens`.

        Returns:
            One tensor, bool [rows]: whether top_p may allow more than the `nucleus` likeliest tokens that it looked at.
            Empty if that is impossible.
        """
        vocabulary, flags = logits.shape[1], []
        for part in _chunks(rows, logits):
            index = _index(part, logits.device)
            scores = self._scores(logits[index], part, -(-vocabulary // BLOCK) * BLOCK)
            flags.append(_filter(scores, [row for _, row in part], min(nucleus, vocabulary), vocabulary))
            keys = noise_keys([row.request.seed for _, row in part], [len(row.tokens) for _, row in part])
            tokens[index] = _drawn(scores, to_device(keys, logits.device, torch.long))
        return [torch.cat(flags)] if any(_unlimited(row) for _, row in rows) and nucleus < vocabulary else []


def _unlimited(row: Row) -> bool:
    """Whether top_p looks at all tokens, not at those of top_k."""
    params = row.request.params
    return params.top_p is not None and params.top_p < 1.0 and not params.top_k


def _filter(scores: torch.Tensor, rows: list[Row], nucleus: int, vocabulary: int) -> torch.Tensor:
    """Apply temperature, top_k, top_p and min_p in place, as transformers' warpers: excluded tokens get -inf.

    All tokens with the score of the last allowed token are allowed, so the order of equal scores does not matter.

    Returns:
        bool [rows]: whether top_p may allow more than the `nucleus` likeliest tokens.
    """
    params = [row.request.params for row in rows]
    limits = [min(p.top_k or 0, vocabulary) for p in params]
    shares = [p.top_p if p.top_p is not None and p.top_p < 1.0 else math.inf for p in params]
    floors = [math.log(p.min_p) if p.min_p else -math.inf for p in params]
    settings = [[p.temperature or 1.0 for p in params], limits, shares, floors]
    temperature, limit, share, floor = to_device(settings, scores.device, torch.float32)[:, :, None]
    scores /= temperature
    cut = torch.zeros(len(rows), dtype=torch.bool, device=scores.device)
    count = max([*limits, nucleus if any(_unlimited(row) for row in rows) else 0])
    if not count and max(floors) == -math.inf:
        return cut
    best = scores.topk(count).values if count else scores.amax(dim=-1, keepdim=True)
    lowest = torch.full_like(floor, -math.inf)
    if any(limits):
        last = best.gather(1, (limit.long() - 1).clamp(min=0))
        lowest = last.masked_fill(limit == 0, -math.inf)
    if min(shares) < math.inf:
        scores.masked_fill_(scores < lowest, -math.inf)
        # A token is in the nucleus if the likelier tokens together have less than top_p.
        mass = (best - scores.logsumexp(dim=-1, keepdim=True)).exp().masked_fill(best < lowest, 0.0)
        last = ((mass.cumsum(dim=-1) - mass < share).sum(dim=-1, keepdim=True) - 1).clamp(min=0)
        lowest = torch.maximum(lowest, best.gather(1, last).masked_fill(share == math.inf, -math.inf))
        cut = ((last == count - 1) & (limit == 0) & (share < math.inf))[:, 0]
    scores.masked_fill_(scores < torch.maximum(lowest, best[:, :1] + floor), -math.inf)
    return cut


def _drawn(scores: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """A token of each row, drawn with the probabilities of the scores [rows, a multiple of `BLOCK`].

    The greatest of score plus Gumbel noise is such a draw. We draw a block of tokens by its total probability first,
    so that a row needs few random numbers.
    """
    rows, blocks = scores.shape[0], scores.shape[1] // BLOCK
    noise = gumbel_noise(keys, blocks + BLOCK)
    mass = (scores - scores.amax(dim=-1, keepdim=True)).exp_().view(rows, blocks, BLOCK).sum(dim=-1)
    block = (mass.log_() + noise[:, :blocks]).argmax(dim=-1, keepdim=True)
    inside = scores.view(rows, blocks, BLOCK).gather(1, block[:, :, None].expand(-1, 1, BLOCK))[:, 0]
    return block[:, 0] * BLOCK + (inside + noise[:, blocks:]).argmax(dim=-1)


def _logprobs(logits: torch.Tensor, tokens: torch.Tensor, rows: Numbered) -> list[torch.Tensor]:
    """Log-probabilities of the unchanged logits: those of the tokens and of the likeliest, and the latter's ids."""
    values, ids = [], []
    count = max((row.logprobs or 0 for _, row in rows), default=0)
    for part in _chunks(rows, logits):
        index = _index(part, logits.device)
        scores = logits[index].float()
        total = scores.logsumexp(dim=-1, keepdim=True)
        own = scores.gather(1, tokens[index][:, None])
        top = scores.topk(count)
        values.append(torch.cat([own, top.values], dim=1) - total)
        ids.append(top.indices)
    return [torch.cat(values), torch.cat(ids)] if values else []


def _read_logprobs(rows: Numbered, found: list) -> dict[int, Logprob]:
    if not rows:
        return {}
    values, ids = (array.tolist() for array in found)
    return {
        i: (own[0], list(zip(likeliest, own[1:], strict=True))[: row.logprobs])
        for (i, row), own, likeliest in zip(rows, values, ids, strict=True)
    }


def _chunks(rows: Numbered, logits: torch.Tensor) -> Iterator[Numbered]:
    size = max(1, CHUNK_VALUES // logits.shape[1])
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _index(rows: Numbered, device: torch.device) -> torch.Tensor | slice:
    """The rows' indices; a slice, which copies nothing, if they follow each other."""
    first, last = rows[0][0], rows[-1][0]
    if last - first == len(rows) - 1:
        return slice(first, last + 1)
    return to_device([i for i, _ in rows], device, torch.long)
