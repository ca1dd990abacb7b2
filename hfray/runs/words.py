"""Numbers of a run in words."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any


def moment(timestamp: float) -> str:
    """A point in time for people, in UTC."""
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def pace_words(rows: float, prompt_tokens: float, generated_tokens: float) -> str:
    """Rates per second in words."""
    return f"{rows:,.1f} rows/s  {prompt_tokens:,.0f} tokens/s in, {generated_tokens:,.0f} out"


def engine_words(ready: int, workers: int, running: int, capacity: int) -> str:
    """How many workers are at work, and how full their engines are, in words."""
    words = f"{ready} worker{'s' * (ready != 1)}" if ready == workers else f"{ready} of {workers} workers"
    return f"{words}  engines {occupancy(running, capacity):.0%} full" if capacity else words


def pool_words(pool: dict[str, Any]) -> str:
    """What a pool of workers has done, in words, from its counts (`hfray.batch.monitor`)."""
    if not pool.get("workers"):
        return "no worker came up"
    words = f"{pool['workers']} worker{'s' * (pool['workers'] != 1)}, {pool['rows']:,} rows"
    words += f", {pool['prompt_tokens']:,} tokens in, {pool['generated_tokens']:,} out"
    share = pool.get("busy_share")
    return words if share is None else f"{words}, {share:.0%} busy"


def occupancy(running: int, capacity: int) -> float:
    """Share of the engines' capacity in use; OpenVINO reads prompts of more rows in a step than it then runs."""
    return min(1.0, running / capacity) if capacity else 0.0


def coarse(seconds: float) -> str:
    """A time left, to no more digits than it deserves: 40 s, 3 min 20 s, 25 min, 5 h 10 min."""
    step = 1 if seconds < 20 else 5 if seconds < 60 else 10 if seconds < 600 else 60 if seconds < 7200 else 600
    seconds = max(1, round(seconds / step) * step)
    if seconds < 600:
        return duration(seconds).removesuffix(" 0 s")
    return f"{seconds // 60} min" if seconds < 3600 else duration(seconds).removesuffix(" 0 min")


def duration(seconds: float) -> str:
    """Seconds for people: 42 s, 3 min 10 s, 5 h 12 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
