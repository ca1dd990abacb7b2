"""Prometheus metrics of the online service: counted in each replica, exposed for all replicas together."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hfray.inference.loop import EngineLoop
from hfray.serve.admission import Admission
from hfray.serve.request import Session

FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)  # seconds
PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
FORGET_SECONDS = 30.0  # a replica that has not reported for this long is gone


class ServiceMetrics:
    """The metrics of one replica."""

    def __init__(self, loop: EngineLoop, admission: Admission) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "hfray_requests", "HTTP requests answered", ["path", "status"], registry=self.registry
        )  # status 499: the client disconnected before the response
        self.prompt_tokens = Counter("hfray_prompt_tokens", "Prompt tokens", registry=self.registry)
        self.generated_tokens = Counter("hfray_generated_tokens", "Generated tokens", registry=self.registry)
        self.first_token = Histogram(
            "hfray_time_to_first_token_seconds",
            "Time from a request's arrival to its first token",
            buckets=FIRST_TOKEN,
            registry=self.registry,
        )
        self.per_token = Histogram(
            "hfray_time_per_output_token_seconds",
            "Mean time between the tokens of a completion, after its first token",
            buckets=PER_TOKEN,
            registry=self.registry,
        )
        self.registry.register(_EngineCollector(loop, admission))

    def observe(self, session: Session) -> None:
        """Count the tokens and times of a request; call once, at its end."""
        self.prompt_tokens.inc(session.prompt_tokens)
        for handle in session.handles:
            if handle.first_token is None or handle.last_token is None:
                continue
            self.generated_tokens.inc(handle.num_tokens)
            self.first_token.observe(handle.first_token - session.started)
            if handle.num_tokens > 1:
                self.per_token.observe((handle.last_token - handle.first_token) / (handle.num_tokens - 1))

    def collect(self) -> list[Metric]:
        """The current values of all metrics."""
        return list(self.registry.collect())


class _EngineCollector(Collector):
    """Metrics that the engine loop and the admission count themselves."""

    def __init__(self, loop: EngineLoop, admission: Admission) -> None:
        self._loop, self._admission = loop, admission

    def collect(self) -> Iterator[Metric]:
        stats = self._loop.stats
        gauges = {
            "hfray_completions_admitted": ("Accepted completions: running, waiting or being sent", None),
            "hfray_completions_running": ("Completions in the engine's last step", stats.running),
            "hfray_completions_waiting": ("Completions that wait for room in the engine", stats.waiting),
            "hfray_engine_capacity": ("Completions that the engine runs at once", stats.capacity),
            "hfray_engine_occupancy_ratio": ("Share of the capacity in use", stats.running / max(1, stats.capacity)),
        }
        for name, (help_text, value) in gauges.items():
            yield GaugeMetricFamily(name, help_text, self._admission.taken if value is None else value)
        yield CounterMetricFamily("hfray_engine_steps", "Steps of the engine", stats.steps)
        yield CounterMetricFamily("hfray_engine_full_steps", "Steps at 80 % of the capacity or more", stats.full_steps)
        yield CounterMetricFamily("hfray_engine_busy_seconds", "Time spent in the engine's steps", stats.busy_seconds)
        yield CounterMetricFamily(
            "hfray_engine_prefix_tokens", "Prompt tokens found in the prefix cache", stats.prefix_tokens
        )


class MetricsBoard:
    """Collects the metrics of all replicas: a scrape reaches any one replica and must show all of them."""

    def __init__(self) -> None:
        self._reports: dict[str, tuple[float, list[Metric]]] = {}

    def exchange(self, replica: str, metrics: list[Metric]) -> bytes:
        """Store a replica's metrics; returns the metrics of all replicas as Prometheus text with a `replica` label."""
        now = time.monotonic()
        self._reports[replica] = now, metrics
        self._reports = {name: entry for name, entry in self._reports.items() if now - entry[0] < FORGET_SECONDS}
        return exposition({name: metrics for name, (_, metrics) in self._reports.items()})


def exposition(reports: Mapping[str, Iterable[Metric]]) -> bytes:
    """The metrics of several replicas, by name, as one Prometheus text."""
    families: dict[str, Metric] = {}
    for replica, metrics in reports.items():
        for metric in metrics:
            family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            family.samples += [s._replace(labels={**s.labels, "replica": replica}) for s in metric.samples]
    return generate_latest(_Collected(families.values()))


class _Collected(CollectorRegistry):
    """A registry of metrics that were collected before."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        super().__init__()
        self._metrics = list(metrics)

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics
