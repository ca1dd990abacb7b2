"""What a batch worker tells Ray's dashboard and Prometheus, beside what the run's own progress shows.

Ray exports each as `ray_NAME` on its node's metrics port, with the node and the worker's process as tags. The only
tag of ours is the model: rows are never told apart, since each value of a tag is a series kept for good.
"""

from __future__ import annotations

from typing import Any

from hfray.inference.stats import LoopStats

# LoopStats' fields that grow, as counters, and those that are a state, as gauges: field -> (name, description).
COUNTERS = {
    "rows": ("hfray_batch_rows", "Rows finished, failed ones among them"),
    "failed_rows": ("hfray_batch_failed_rows", "Rows that failed"),
    "prompt_tokens": ("hfray_batch_prompt_tokens", "Tokens of the finished rows' prompts"),
    "generated_tokens": ("hfray_batch_generated_tokens", "Tokens generated for finished rows"),
    "steps": ("hfray_batch_engine_steps", "Steps of the engine"),
    "full_steps": ("hfray_batch_engine_full_steps", "Steps at 80 % of the engine's capacity or more"),
    "shared_rows": ("hfray_batch_shared_rows", "Rows that took the completion of an equal prompt"),
    "saved_prompt_tokens": ("hfray_batch_saved_prompt_tokens", "Tokens of such rows' prompts"),
    "saved_tokens": ("hfray_batch_saved_tokens", "Generated tokens that such rows took over"),
    "prefix_tokens": ("hfray_batch_prefix_tokens", "Prompt tokens that the prefix cache had"),
    "busy_seconds": ("hfray_batch_engine_busy_seconds", "Time in the engine's steps"),
}
GAUGES = {
    "running": ("hfray_batch_rows_running", "Rows in the engine's last step"),
    "waiting": ("hfray_batch_rows_waiting", "Rows that wait for room in the engine"),
    "capacity": ("hfray_batch_engine_capacity", "Rows that the engine runs at once"),
}


class WorkerMetrics:
    """One worker's metrics, in its own process.

    Args:
        model: the value of the `model` tag.
    """

    def __init__(self, model: str) -> None:
        from ray.util.metrics import Counter, Gauge

        tags = {"model": model}
        self._counters = {field: _tagged(Counter, *named, tags) for field, named in COUNTERS.items()}
        self._gauges = {field: _tagged(Gauge, *named, tags) for field, named in GAUGES.items()}
        self._told = dict.fromkeys(COUNTERS, 0.0)

    def update(self, stats: LoopStats) -> None:
        """Tell what has changed since the last time."""
        for field, counter in self._counters.items():
            value = getattr(stats, field)
            if value > self._told[field]:
                counter.inc(value - self._told[field])
                self._told[field] = value
        for field, gauge in self._gauges.items():
            gauge.set(getattr(stats, field))


def _tagged(kind: Any, name: str, description: str, tags: dict[str, str]) -> Any:
    metric = kind(name, description=description, tag_keys=tuple(tags))
    metric.set_default_tags(tags)
    return metric
