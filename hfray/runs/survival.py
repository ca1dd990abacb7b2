"""How long answers get: the distribution of their lengths, estimated while many of them are still being generated.

Finished answers alone would mislead: the short ones finish first. A life table also counts the answers that still run:
they are known to be longer than they are now. Beyond the longest length so far, lengths are taken to be lognormal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from hfray.runs import buckets
from hfray.runs.buckets import bucket_of

CELLS = 96
EDGES = np.array(buckets.EDGES)
NEVER, ALL_ENDED = -20.0, -9.0  # logarithms: of the smallest share, and of one so small that no row is left
ENOUGH_ROWS, ENOUGH_SHARE = 3, 0.02  # ended answers, and their share, from which on the longer ones are extrapolated
SIGMA, SIGMA_ROWS = 0.5, 0.2  # the spread of the logarithms to expect, and how many rows that expectation weighs


@dataclass(frozen=True, slots=True)
class Survival:
    """The distribution of lengths, on a grid of cells.

    Attributes:
        width: tokens in a cell.
        keep: for each cell, the share of the rows in it that reach the next cell; 0 for the last.
        zero: share of the rows that end without a generated token (failed rows, repeated prompts).
        mean: expected length of a row, in tokens.
        bounded: too few answers have ended to know the lengths; all others are taken to reach the limit.
    """

    width: float
    keep: np.ndarray
    zero: float
    mean: float
    bounded: bool

    def cells(self, running: Sequence[int]) -> np.ndarray:
        """Rows in each cell, from their numbers in each bucket; rows without a token yet are left out."""
        counts = np.asarray(running[1:], dtype=float)
        middles = (EDGES[1:-1] + EDGES[2:] - 1) / 2
        found = np.zeros(len(self.keep))
        np.add.at(found, np.minimum(middles / self.width, len(self.keep) - 1).astype(int), counts)
        return found


def survival(answers: Sequence[int], running: Sequence[int], limit: int) -> Survival:
    """The distribution of lengths.

    Args:
        answers, running: rows by bucket of their length: finished rows, and rows that are being generated.
        limit: tokens that no answer exceeds.
    """
    ended, current = np.asarray(answers, dtype=float), np.asarray(running, dtype=float)
    seen, last = np.flatnonzero(ended + current), bucket_of(limit)
    top = min(int(seen[-1]) if len(seen) else 0, last)
    at_risk = np.cumsum((ended + current)[::-1])[::-1] - current / 2
    ended[last:] = 0  # the limit ended these answers
    hazard = np.divide(ended, at_risk, out=np.zeros_like(ended), where=at_risk > 0)[: top + 1]
    logs = np.concatenate([[0.0], np.cumsum(np.log1p(-np.minimum(hazard, 1 - 1e-9)))]).clip(min=NEVER)
    zero, logs = float(hazard[0]), logs - logs[1]  # from here on, of the rows that have a token
    edges = EDGES[1 : top + 2].astype(float)
    count = ended[1:].sum()
    known = count >= max(ENOUGH_ROWS, ENOUGH_SHARE * at_risk[1]) or top == last or 0 == at_risk[1] < at_risk[0]
    beyond = np.geomspace(edges[-1], limit, 2 * CELLS)[1:] if edges[-1] < limit else np.zeros(0)
    tail = np.zeros(len(beyond))
    if known and len(beyond) and logs[-1] > NEVER / 2:
        tail = _lognormal_tail(edges, logs[1:], at_risk[: top + 1], beyond)
    knots, values = np.concatenate([edges, beyond]), np.concatenate([logs[1:], logs[-1] + tail]).clip(min=NEVER)
    over = np.flatnonzero(values < ALL_ENDED)
    horizon = max(1.0, min(float(limit), float(knots[over[0]]) if len(over) else float(limit)))
    number = int(min(CELLS, horizon))
    keep = np.exp(np.diff(np.interp(np.linspace(0, horizon, number + 1), knots, values, left=0.0)))
    keep[-1] = 0.0
    width = horizon / number
    mean = (1 - zero) * width * (1 + np.cumprod(keep)[:-1].sum())
    return Survival(width, keep, zero, float(mean), not known)


def _lognormal_tail(edges: np.ndarray, logs: np.ndarray, at_risk: np.ndarray, beyond: np.ndarray) -> np.ndarray:
    """Logarithms of the shares that get beyond these lengths, of the rows that get beyond the last edge.

    The normal scores of the shares at the edges are a straight line over the logarithms of the lengths; the line is
    fitted by least squares, each edge weighted by what its rows say about its score.
    """
    normal = NormalDist()
    shares = 1 - np.exp(logs)
    use = (shares > 0) & (logs > NEVER / 2) & (at_risk > 0)
    x, share = np.log(edges[use]), shares[use]
    scores = np.array([normal.inv_cdf(value) for value in share])
    weights = at_risk[use] * np.array([normal.pdf(score) for score in scores]) ** 2 / (share * (1 - share))
    middle, score = np.average(x, weights=weights), np.average(scores, weights=weights)
    spread = float((weights * (x - middle) ** 2).sum())
    prior = SIGMA_ROWS * SIGMA**2
    slope = (float((weights * (x - middle) * (scores - score)).sum()) + prior / SIGMA) / (spread + prior)
    line = [score + max(slope, 0.05) * (np.log(length) - middle) for length in (edges[-1], *beyond)]
    found = np.array([math.log(max(math.erfc(value / math.sqrt(2)) / 2, 1e-12)) for value in line])
    return found[1:] - found[0]
