"""State that all requests of a replica share: health, model name, metrics, and shutdown."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from hfray.config.compose import load_settings
from hfray.config.serve import ServeSettings
from hfray.errors import EngineDiedError
from hfray.serve.admission import Ticket
from hfray.serve.errors import ApiError
from hfray.serve.keys import ApiKeys
from hfray.serve.replica import Service, model_name


@pytest.fixture
def service() -> Service:
    return Service(load_settings(["conf=fake", "model.source=fake-model"], ServeSettings), ApiKeys())


class Session:
    """Records the error that ends it."""

    error: EngineDiedError | None = None

    def fail(self, error: EngineDiedError) -> None:
        self.error = error


def test_a_dead_engine_is_reported(service):
    service.check()
    service._die(EngineDiedError("dead"))
    with pytest.raises(EngineDiedError, match="dead"):
        service.check()


def test_a_hung_engine_ends_its_sessions(service, monkeypatch):
    session: Any = Session()
    service._sessions.add(session)
    monkeypatch.setattr(service.worker.loop, "stalled_for", lambda: 1e6)
    with pytest.raises(EngineDiedError, match=r"workers\.step_timeout"):
        service.check()
    assert session.error is not None


def test_another_model_is_not_found(service):
    service.check_model(None)
    service.check_model("fake-model")
    with pytest.raises(ApiError) as caught:
        service.check_model("gpt-9")
    assert caught.value.status_code == 404


def test_an_idle_replica_drains_immediately(service):
    asyncio.run(asyncio.wait_for(service.drain(1000), 30))
    assert service.stopping


def test_drain_waits_for_the_running_requests(service):
    async def stop() -> None:
        ticket = Ticket(service.admission, lambda _: None)
        draining = asyncio.create_task(service.drain(1000))
        await asyncio.sleep(0.2)
        assert service.stopping
        assert not draining.done()
        ticket.close()
        await draining

    asyncio.run(asyncio.wait_for(stop(), 30))


def test_metrics_without_a_board_name_the_replica(service):
    service.count_request("/health", 200)
    text = asyncio.run(service.exposition()).decode()
    assert 'hfray_requests_total{path="/health",replica="0",status="200"} 1.0' in text


def test_model_names():
    assert model_name("bigscience/bloom-1b7") == "bigscience/bloom-1b7"
    assert model_name("pip:p==1/p/Small.gguf") == "Small"
    assert model_name(f"pip:p==1/p/Small.gguf#sha256={'0' * 64}") == "Small"
    assert model_name("s3://bucket/models/mine/") == "mine"
    assert model_name("/models/mine") == "mine"
