"""The metrics of a batch worker for Ray's dashboard and Prometheus.

Ray exports each metric as `ray_NAME` on its node's metrics port, with the node and the worker's process as tags. We
add two tags, the model and the pool. A tag with many values, such as a row id, would make a new time series for each value.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeVar

from hfray.inference.stats import LoopStats

if TYPE_CHECKING:
    from ray.util.metrics import Counter, Gauge

    M = TypeVar("M", Counter, Gauge)

# The counters of `Totals` and the gauges of `LoopStats`: field -> (name, description).
COUNTERS = {
    "rows": ("hfray_batch_rows", "Rows finished, failed rows included"),
    "failed_rows": ("hfray_batch_failed_rows", "Rows that failed"),
    "prompt_tokens": ("hfray_batch_prompt_tokens", "Prompt tokens that the engine has processed"),
    "generated_tokens": ("hfray_batch_generated_tokens", "Tokens that the engine has generated"),
    "steps": ("hfray_batch_engine_steps", "Steps of the engine"),
    "full_steps": ("hfray_batch_engine_full_steps", "Steps at 80 % of the engine's capacity or more"),
    "shared_rows": ("hfray_batch_shared_rows", "Rows that reused the completion of an equal prompt"),
    "saved_prompt_tokens": ("hfray_batch_saved_prompt_tokens", "Prompt tokens of rows that reused a completion"),
    "saved_tokens": ("hfray_batch_saved_tokens", "Generated tokens of rows that reused a completion"),
    "prefix_tokens": ("hfray_batch_prefix_tokens", "Prompt tokens found in the prefix cache"),
    "busy_seconds": ("hfray_batch_engine_busy_seconds", "Time in the engine's steps"),
}
GAUGES = {
    "running": ("hfray_batch_rows_running", "Rows in the engine's last step"),
    "waiting": ("hfray_batch_rows_waiting", "Rows that wait for room in the engine"),
    "capacity": ("hfray_batch_engine_capacity", "Rows that the engine can run at once"),
}


class WorkerMetrics:
    """The metrics of one worker, in its own process.

    Args:
        model, pool: the values of the tags; the only pool of a job has no name.
    """

    def __init__(self, model: str, pool: str = "") -> None:
        from ray.util.metrics import Counter, Gauge

        tags = {"model": model, "pool": pool}
        self._counters = {field: _tagged(Counter, *named, tags) for field, named in COUNTERS.items()}
        self._gauges = {field: _tagged(Gauge, *named, tags) for field, named in GAUGES.items()}
        self._exported = dict.fromkeys(COUNTERS, 0.0)
        self._lock = threading.Lock()

    def update(self, stats: LoopStats) -> None:
        """Export what has changed since the last call. Safe to call from several threads."""
        with self._lock:
            for field, counter in self._counters.items():
                value = getattr(stats, field)
                if value > self._exported[field]:
                    counter.inc(value - self._exported[field])
                    self._exported[field] = value
        for field, gauge in self._gauges.items():
            gauge.set(getattr(stats, field))


def _tagged(kind: type[M], name: str, description: str, tags: dict[str, str]) -> M:
    metric = kind(name, description=description, tag_keys=tuple(tags))
    metric.set_default_tags(tags)
    return metric
