"""Numbers of a run in words."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from hfray.runs.snapshot import PoolCounts
from hfray.runs.timeleft import Estimate

LONGEST_TEXT = 4000  # characters of a prompt or an answer on a page


def moment(timestamp: float) -> str:
    """A point in time for people, in UTC."""
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def pace_words(rows: float, prompt_tokens: float, generated_tokens: float) -> str:
    """Rates per second in words."""
    return f"{rows:,.1f} rows/s  {token_words(prompt_tokens, generated_tokens)}"


def token_words(prompt_tokens: float, generated_tokens: float) -> str:
    """Tokens per second in words."""
    return f"{prompt_tokens:,.0f} tokens/s in, {generated_tokens:,.0f} out"


def engine_words(ready: int, workers: int, running: int, capacity: int) -> str:
    """How many workers are ready, and how full their engines are, in words."""
    words = f"{ready} worker{'s' * (ready != 1)}" if ready == workers else f"{ready} of {workers} workers"
    return f"{words}  engines {occupancy(running, capacity):.0%} full" if capacity else words


def pool_words(pool: PoolCounts) -> str:
    """What a pool of workers did, in words."""
    if not pool.workers:
        return "no worker started"
    words = f"{pool.workers} worker{'s' * (pool.workers != 1)}, {pool.rows:,} rows"
    words += f", {pool.prompt_tokens:,} tokens in, {pool.generated_tokens:,} out"
    return words if pool.busy_share is None else f"{words}, {pool.busy_share:.0%} busy"


def precision_words(precisions: Mapping[str, int]) -> str:
    """What engines compute in, in words; with the number of workers if they differ."""
    if len(precisions) == 1:
        return next(iter(precisions))
    return " and ".join(f"{name} ({count} worker{'s' * (count != 1)})" for name, count in precisions.items())


def occupancy(running: int, capacity: int) -> float:
    """Share of the engines' capacity in use. OpenVINO may prefill more rows in a step than its capacity: at most 1."""
    return min(1.0, running / capacity) if capacity else 0.0


def coarse(seconds: float) -> str:
    """A time left, rounded to what an estimate can claim: 40 s, 3 min 20 s, 25 min, 5 h 10 min."""
    step = 1 if seconds < 20 else 5 if seconds < 60 else 10 if seconds < 600 else 60 if seconds < 7200 else 600
    seconds = max(1, round(seconds / step) * step)
    if seconds < 600:
        return duration(seconds).removesuffix(" 0 s")
    return f"{seconds // 60} min" if seconds < 3600 else duration(seconds).removesuffix(" 0 min")


def left_words(left: Estimate | None) -> str:
    """The time left in words; empty if there is no estimate."""
    if left is None:
        return ""
    return f"{'at most ' * left.at_most}{coarse(left.seconds)} left"


def duration(seconds: float) -> str:
    """Seconds for people: 42 s, 3 min 10 s, 5 h 12 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def rate(value: float) -> str:
    """A number per second: 1,234, 56.7, 0.12."""
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}" if value >= 1 else f"{value:.2g}"


def size(size_bytes: float) -> str:
    """A size in bytes for people: 12 bytes, 3.4 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:,.0f} {unit}" if unit == "bytes" else f"{size_bytes:,.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:,.1f} TB"


def cut(text: str, longest: int = LONGEST_TEXT) -> str:
    """The text, without its middle if it is too long to read."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters left out …]\n{text[-half:]}"
