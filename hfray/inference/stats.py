"""Counters of an engine loop."""

from __future__ import annotations

from dataclasses import dataclass, field

from hfray.engines.base import StepOutput
from hfray.runs.buckets import bucket_of, empty_buckets
from hfray.runs.snapshot import Totals


@dataclass(slots=True)
class Progress:
    """How far a row is: its generated tokens, their bucket, and whether its prompt has been processed."""

    generated: int = 0
    bucket: int = 0
    prefilled: bool = False


@dataclass(slots=True)
class LoopStats(Totals):
    """Counters since the loop started, and what the engine is doing now.

    Attributes:
        last_full: `time.time()` of the last step that used at least 80 % of the capacity; 0 before the first.
        running: rows in the engine's last step.
        waiting: rows that wait for room in the engine.
        capacity: rows that the engine can run at once.
        max_new_tokens: the most tokens that any row so far may generate.
        running_lengths: rows in the engine by bucket (`hfray.runs.buckets`) of their generated tokens.
        answer_lengths: finished rows by bucket of their generated tokens; rows that needed no engine have none.
    """

    last_full: float = 0.0
    running: int = 0
    waiting: int = 0
    capacity: int = 0
    max_new_tokens: int = 0
    running_lengths: list[int] = field(default_factory=empty_buckets)
    answer_lengths: list[int] = field(default_factory=empty_buckets)

    def start(self, max_new_tokens: int) -> None:
        """A row enters the engine, in the bucket of length 0."""
        self.max_new_tokens = max(self.max_new_tokens, max_new_tokens)
        self.running_lengths[0] += 1

    def advance(self, progress: Progress, prompt_tokens: int, output: StepOutput) -> None:
        """Count what a step did for a row. The prompt counts with the first output."""
        if not progress.prefilled and (output.token_ids or output.finish_reason or output.error):
            progress.prefilled = True
            self.prompt_tokens += prompt_tokens
        self.generated_tokens += len(output.token_ids)
        progress.generated += len(output.token_ids)
        bucket = bucket_of(progress.generated)
        if bucket != progress.bucket:
            self.running_lengths[progress.bucket] -= 1
            self.running_lengths[bucket] += 1
            progress.bucket = bucket
