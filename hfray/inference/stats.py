"""Counters of an engine loop."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class LoopStats:
    """Counters since the loop started; all grow, but `running`, `waiting` and `capacity`, which are now.

    Prompt and generated tokens are the engine's own; those of rows served by an equal prompt's completion are the
    saved ones. `prefix_tokens` are the prompt tokens that the prefix cache had already; `last_full` is `time.time()` of
    the last full step.
    """

    steps: int = 0
    full_steps: int = 0
    rows: int = 0
    failed_rows: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    shared_rows: int = 0
    saved_prompt_tokens: int = 0
    saved_tokens: int = 0
    prefix_tokens: int = 0
    busy_seconds: float = 0.0
    last_full: float = 0.0
    running: int = 0
    waiting: int = 0
    capacity: int = 0
