"""The metrics of the service: tokens and times of requests, gauges of the engine, and several replicas in one page."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hfray.inference.stats import LoopStats
from hfray.serve import metrics
from hfray.serve.admission import Admission
from hfray.serve.metrics import MetricsBoard, ServiceMetrics, exposition


def made() -> tuple[ServiceMetrics, LoopStats, Admission]:
    stats, admission = LoopStats(capacity=4), Admission(8)
    loop: Any = SimpleNamespace(stats=stats)
    return ServiceMetrics(loop, admission), stats, admission


def values(text: bytes) -> dict[str, float]:
    """Sums over labels, by sample name."""
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0) + sample.value
    return sums


def test_tokens_and_times_of_a_request():
    service, _, _ = made()
    answered = SimpleNamespace(first_token=11.0, last_token=13.0, num_tokens=5)
    unanswered = SimpleNamespace(first_token=None, last_token=None, num_tokens=0)
    session: Any = SimpleNamespace(prompt_tokens=7, started=10.0, handles=[answered, unanswered])
    service.observe(session)
    found = values(exposition({"one": service.collect()}))
    assert found["hfray_prompt_tokens_total"] == 7
    assert found["hfray_generated_tokens_total"] == 5
    assert found["hfray_time_to_first_token_seconds_count"] == 1
    assert found["hfray_time_to_first_token_seconds_sum"] == 1.0
    assert found["hfray_time_per_output_token_seconds_sum"] == 0.5


def test_gauges_follow_the_engine_and_the_admission():
    service, stats, admission = made()
    stats.running, stats.waiting, stats.steps = 3, 2, 9
    admission.take(5)
    found = values(exposition({"one": service.collect()}))
    assert found["hfray_completions_running"] == 3
    assert found["hfray_completions_waiting"] == 2
    assert found["hfray_completions_admitted"] == 5
    assert found["hfray_engine_occupancy_ratio"] == 0.75
    assert found["hfray_engine_steps_total"] == 9


def test_the_board_shows_every_replica_and_drops_ended_ones(monkeypatch):
    board, now = MetricsBoard(), [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    one, two = made()[0], made()[0]
    board.exchange("one", one.collect())
    text = board.exchange("two", two.collect()).decode()
    assert 'replica="one"' in text
    assert 'replica="two"' in text
    assert values(text.encode())["hfray_engine_capacity"] == 8
    assert text.count("# TYPE hfray_engine_capacity gauge") == 1
    now[0] += metrics.FORGET_SECONDS + 1
    assert 'replica="one"' not in board.exchange("two", two.collect()).decode()


def test_requests_are_counted_by_path_and_status():
    service, _, _ = made()
    service.requests.labels("/v1/completions", "200").inc()
    service.requests.labels("/v1/completions", "499").inc()
    text = exposition({"one": service.collect()}).decode()
    assert 'hfray_requests_total{path="/v1/completions",replica="one",status="499"} 1.0' in text
    assert values(text.encode())["hfray_requests_total"] == pytest.approx(2)
