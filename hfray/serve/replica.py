"""One replica's engine, and what its requests share: admission, keys, metrics and open sessions."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import weakref
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from hfray.config.serve import ServeSettings
from hfray.engines.process import ProcessEngine
from hfray.errors import EngineDiedError
from hfray.inference.worker import Worker
from hfray.serve.admission import Admission
from hfray.serve.errors import ApiError, ServerStoppedError
from hfray.serve.keys import ApiKeys
from hfray.serve.metrics import ServiceMetrics, exposition
from hfray.serve.request import Session
from hfray.urls import without_hash

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

logger = logging.getLogger(__name__)
REPORT_SECONDS = 5.0
LAST_WORDS_SECONDS = 2.0  # for the error events of ended streams to reach their clients


class Service:
    """One engine, and everything that its requests share.

    Args:
        settings: the settings of the service.
        keys: the API keys that clients must send.
        threads: CPU threads of the engine.
        name: the name of this replica in the metrics.
        board: the Serve handle of `MetricsBoard`, where replicas share their metrics; None if there is one replica.
    """

    def __init__(
        self,
        settings: ServeSettings,
        keys: ApiKeys,
        threads: int | None = None,
        name: str = "0",
        board: DeploymentHandle | None = None,
    ) -> None:
        self.settings, self.keys = settings, keys
        self.model_name = settings.serve.model_name or model_name(settings.model.source)
        self._death: EngineDiedError | None = None
        self.worker = Worker(settings, None, threads, on_death=self._die, apart=True)
        if self.worker.choice is not None:
            logger.info("backend=auto: %s", self.worker.choice)
        loop = self.worker.loop
        self.admission = Admission(loop.engine.capacity + settings.serve.max_queue)
        self._metrics = ServiceMetrics(loop, self.admission)
        self._name, self._board = name, board
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        self.stopping = False

    def check(self) -> None:
        """Raises EngineDiedError if the engine is dead or hangs, and ends the requests that wait for the engine."""
        stalled = self.worker.loop.stalled_for()
        if self._death is None and stalled > self.settings.workers.step_timeout:
            death = EngineDiedError(f"no step for {stalled:.0f} s (workers.step_timeout)")
            self._die(death)
            self._end_sessions(death)
            if isinstance(self.worker.loop.engine, ProcessEngine):
                self.worker.loop.engine.kill()
        if self._death is not None:
            raise self._death

    def check_model(self, name: str | None) -> None:
        """Raises ApiError 404 if a client asks for a model of another name."""
        if name is not None and name != self.model_name:
            raise ApiError(
                404,
                f"model {name!r} does not exist here; this server runs {self.model_name!r}",
                code="model_not_found",
                param="model",
            )

    def open_session(self) -> Session:
        """A new session with the engine; the ticket of its request closes it."""
        session = Session(self.worker.loop)
        self._sessions.add(session)
        return session

    def close_session(self, session: Session) -> None:
        """Count a closed session in the metrics."""
        self._sessions.discard(session)
        self._metrics.observe(session)

    def count_request(self, path: str, status: int) -> None:
        """Count an answered HTTP request in the metrics."""
        self._metrics.requests.labels(path, str(status)).inc()

    async def exposition(self) -> bytes:
        """The metrics of all replicas as Prometheus text."""
        metrics = self._metrics.collect()
        if self._board is None:
            return exposition({self._name: metrics})
        return await self._board.exchange.remote(self._name, metrics)

    async def report(self) -> None:
        """Send this replica's metrics to the board regularly, for scrapes that reach another replica."""
        while self._board is not None:
            with contextlib.suppress(Exception):  # Ray is replacing the board; the next report reaches the new one
                await self.exposition()
            await asyncio.sleep(REPORT_SECONDS)

    async def drain(self, seconds: float) -> None:
        """Refuse new requests from now on, and let the running ones finish; end them with an error after `seconds`."""
        self.stopping = True
        await self._idle(seconds)
        self._end_sessions(ServerStoppedError("the server stopped"))
        await self._idle(LAST_WORDS_SECONDS)

    async def _idle(self, seconds: float) -> None:
        """Wait until no request is running, for `seconds` at most."""
        deadline = time.monotonic() + seconds
        while self.admission.taken and time.monotonic() < deadline:
            await asyncio.sleep(0.05)

    def _end_sessions(self, error: EngineDiedError) -> None:
        for session in list(self._sessions):
            session.fail(error)

    def _die(self, error: EngineDiedError) -> None:
        self._death = error


def model_name(source: str) -> str:
    """The name that clients ask for: a hub id unchanged, or the name of the file or folder."""
    if source.startswith("pip:") or source.endswith(".gguf") or "://" in source or source[:1] in ("/", ".", "~"):
        return PurePosixPath(without_hash(source).rstrip("/")).name.removesuffix(".gguf")
    return source
