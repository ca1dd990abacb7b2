"""What the work of a run costs in time, learned while the run goes on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PIECE_SECONDS, PIECES = 2.0, 100  # the run is cut into pieces of this length, or of a hundredth of the run
PRIOR = 0.1  # pieces that the expectation weighs
PROMPT_TOKEN = 1.0  # a prompt token's work, in generated tokens
ADVANCE = 0.5  # expected cost of a step as such, in the cost of its tokens


@dataclass(frozen=True, slots=True)
class Work:
    """The work of a run until `time`.

    Attributes:
        advance: tokens by which a row grew that was running all the time.
        tokens: the tokens of all rows; a prompt token counts as PROMPT_TOKEN generated ones.
    """

    time: float = 0.0
    advance: float = 0.0
    tokens: float = 0.0

    def since(self, other: Work) -> np.ndarray:
        """Seconds, advance and tokens since an earlier time."""
        return np.array([self.time - other.time, self.advance - other.advance, self.tokens - other.tokens])


class WorkTime:
    """Seconds of each kind of work: time = a * advance + b * tokens.

    An engine whose steps take the same time however many rows they advance has the first part only; an engine at the
    limit of its arithmetic has the second only. A fit by least squares over the run so far tells them apart once the
    number of running rows changes. Until then the expectation decides.
    """

    def __init__(self) -> None:
        self._first: Work | None = None
        self._last = Work()
        self._pieces: list[np.ndarray] = []

    @property
    def known(self) -> bool:
        """Whether enough work has been measured."""
        return len(self._pieces) >= 2

    def add(self, work: Work) -> None:
        """Take in the work until now."""
        if self._first is None:
            self._first = self._last = work
        seconds = work.time - self._last.time
        if seconds >= max(PIECE_SECONDS, (work.time - self._first.time) / PIECES) and work.tokens > self._last.tokens:
            self._pieces.append(work.since(self._last))
            self._last = work

    def fit(self, rows: float) -> np.ndarray:
        """Seconds of an advance and of a token, with an engine that runs `rows` rows."""
        pieces = np.array(self._pieces)
        scale = pieces.mean(axis=0)
        scale[scale <= 0] = 1.0
        expected = np.array([max(1.0, ADVANCE * rows), 1.0]) * scale[1:]
        expected /= expected.sum()
        pieces /= scale
        seconds, *work = (pieces / np.sqrt(pieces[:, :1])).T
        features = np.stack(work)
        share = np.linalg.solve(features @ features.T + PRIOR * np.eye(2), features @ seconds + PRIOR * expected)
        if share.min() < 0:
            best = int(share.argmax())
            share = np.zeros(2)
            share[best] = features[best] @ seconds / max(1e-9, features[best] @ features[best])
        return share * scale[0] / scale[1:]
