"""The time that a run has left, from the tokens that its rows still need and the speed of the last half minute.

Rows that finish say little: in a wave of rows none finishes until all do. So this counts tokens. The lengths of the
finished and the running answers give the lengths to expect (`hfray.runs.survival`). The rest of the run is then played
through: running rows grow and end, waiting rows take their places, and at the end the engines run empty.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass

import numpy as np

from hfray.runs.snapshot import Snapshot
from hfray.runs.survival import Survival, survival
from hfray.runs.worktime import PROMPT_TOKEN, Work, WorkTime

SPEED_SECONDS = 30.0  # the speed is that of so many last seconds
SPEED_STEPS, SPEED_WORK = 8, 15.0  # or of a longer time, with so many changes of the counters and seconds of usual work
MAX_SAMPLES = 600
MIN_SECONDS = 5.0  # with a ready worker, before a time left is given
EVERY_SECONDS = 2.0  # between two estimates
WAVES = 3  # waiting rows that are played through, in multiples of the capacity


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds left. `at_most`: too few answers have ended, so that this assumes the longest allowed answers."""

    seconds: float
    at_most: bool = False


class TimeLeft:
    """Takes in the snapshots of a run, in order, and estimates the time left."""

    def __init__(self) -> None:
        self._samples: deque[Work] = deque(maxlen=MAX_SAMPLES)
        self._cost = WorkTime()
        self._running = self._generated = 0.0
        self._peaks: deque[tuple[float, float]] = deque()
        self._started: float | None = None
        self._given: tuple[float, Estimate] | None = None

    def update(self, now: float, snapshot: Snapshot, remaining: int) -> Estimate | None:
        """Take in what the workers did until `now`.

        Args:
            now: seconds on any clock.
            remaining: rows without an answer.

        Returns:
            the estimate; None while there is too little to estimate from.
        """
        if not snapshot.workers_ready:
            return None
        self._observe(now, snapshot)
        if remaining <= 0 or self._started is None or now - self._started < MIN_SECONDS or not self._cost.known:
            return None
        if self._given is None or now - self._given[0] >= EVERY_SECONDS:
            self._given = now, self._estimate(snapshot, remaining)
        at, estimate = self._given
        return Estimate(max(0.0, estimate.seconds - (now - at)), estimate.at_most)

    def _observe(self, now: float, snapshot: Snapshot) -> None:
        totals, started = snapshot.totals, sum(snapshot.running_lengths[1:])
        running, rows = float(max(started, snapshot.running)), self._running
        generated, prompts = float(totals.generated_tokens), totals.prompt_tokens - totals.prefix_tokens
        tokens = generated + PROMPT_TOKEN * prompts + totals.rows
        last = self._samples[-1] if self._samples else Work(now, 0.0, tokens)
        grown = max(0.0, generated - self._generated) / max(1.0, (rows + running) / 2) if self._samples else 0.0
        sample = Work(now, last.advance + grown, max(tokens, last.tokens))  # a dead worker's rows are done again
        self._generated = generated
        self._running = running
        self._samples.append(sample)
        self._cost.add(sample)
        self._peaks.append((now, running))
        self._started = now if self._started is None else self._started
        while len(self._peaks) > 2 and now - self._peaks[0][0] > SPEED_SECONDS:
            self._peaks.popleft()
        if len(self._samples) > 2 and sample.tokens <= self._samples[-3].tokens:
            del self._samples[-2]  # a stall needs no samples in between

    def _estimate(self, snapshot: Snapshot, remaining: int) -> Estimate:
        answers, running = snapshot.answer_lengths, snapshot.running_lengths
        lengths = survival(answers, running, max(1, snapshot.max_new_tokens))
        cost = self._cost.fit(max(rows for _, rows in self._peaks))
        arrived, totals = sum(answers) + sum(running[1:]), snapshot.totals
        prompts = max(0, totals.prompt_tokens - totals.prefix_tokens)
        prompt = 1 + PROMPT_TOKEN * prompts / arrived if arrived else 1.0
        cells = lengths.cells(running)
        waiting = max(0.0, remaining - cells.sum())
        capacity = self._capacity(snapshot)
        skipped = max(0.0, waiting - WAVES * capacity)
        seconds = skipped * float(cost @ (lengths.mean / capacity, lengths.mean + prompt))
        seconds += play(lengths, cells, waiting - skipped, capacity, prompt, cost)
        return Estimate(float(seconds * self._slowness(cost)), lengths.bounded)

    def _slowness(self, cost: np.ndarray) -> float:
        """The time of the latest work, as a multiple of what it takes on average over the run."""
        last, later, changes, found = self._samples[-1], self._samples[-1], 0, 1.0
        for sample in itertools.islice(reversed(self._samples), 1, None):
            changes += later.tokens > sample.tokens
            later = sample
            seconds, *work = last.since(sample)
            usual = float(cost @ work)
            found = seconds / usual if usual > 0 else found
            if seconds >= SPEED_SECONDS and changes >= SPEED_STEPS and usual >= SPEED_WORK:
                break
        return found

    def _capacity(self, snapshot: Snapshot) -> float:
        """Rows that run at once: as many as in the last half minute, if they do not grow any more."""
        capacity = float(max(1, snapshot.capacity))
        half = len(self._peaks) // 2
        counts = [rows for _, rows in self._peaks]
        if self._peaks[-1][0] - self._peaks[0][0] < 0.9 * SPEED_SECONDS or max(counts) < 1:
            return capacity
        return min(capacity, max(counts)) if max(counts[half:]) <= 1.05 * max(counts[:half]) else capacity


def play(
    lengths: Survival, cells: np.ndarray, waiting: float, capacity: float, prompt: float, cost: np.ndarray
) -> float:
    """Seconds until all rows have ended.

    Args:
        cells: running rows by cell of their length.
        waiting: rows that have not started.
        prompt: tokens of work that a row brings when it starts.
        cost: seconds of an advance and of a token.
    """
    per_advance, per_token = cost
    seconds, entering = 0.0, max(1 - lengths.zero, 0.02)
    rows = cells.copy()
    while True:
        alive = float(rows.sum())
        if alive + waiting < 0.5:
            return seconds
        starting = min(waiting, max(0.0, capacity - alive) / entering)
        waiting -= starting
        rows[0] += starting * (1 - lengths.zero)
        alive = float(rows.sum())
        grown = lengths.width if alive >= 0.5 else 0.0
        seconds += per_advance * grown + per_token * (alive * lengths.width + starting * prompt)
        rows[1:] = rows[:-1] * lengths.keep[:-1]
        rows[0] = 0.0
