"""What one replica serves with: the worker, its limits and its metrics."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from hfray.config.serve import ServeSettings
from hfray.engines.process import ProcessEngine
from hfray.errors import EngineDiedError
from hfray.inference.worker import Worker
from hfray.serve.admission import Admission
from hfray.serve.errors import ApiError
from hfray.serve.metrics import ServiceMetrics, exposition
from hfray.serve.request import Session

REPORT_SECONDS = 5.0


class Service:
    """One engine, and everything that requests share.

    Args:
        settings: the service's.
        digests: of the API keys (`hfray.serve.middleware.read_key_digests`).
        threads: CPU threads of the engine.
        name: this replica's, in the metrics.
        board: where replicas put their metrics together (a Serve handle of `MetricsBoard`); None: there is no other.
    """

    def __init__(
        self,
        settings: ServeSettings,
        digests: Sequence[bytes] = (),
        threads: int | None = None,
        name: str = "0",
        board: Any = None,
    ) -> None:
        self.settings, self.digests = settings, digests
        self.model_name = settings.serve.model_name or model_name(settings.model.source)
        self._death: EngineDiedError | None = None
        self.worker = Worker(settings, None, threads, on_death=self._die, apart=True)
        loop = self.worker.loop
        self.admission = Admission(loop.engine.capacity + settings.serve.max_queue)
        self._metrics = ServiceMetrics(loop, self.admission)
        self._name, self._board = name, board
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()

    def check(self) -> None:
        """Raises EngineDiedError where the engine is dead or hangs; those that wait for it are told, too."""
        stalled = self.worker.loop.stalled_for()
        if self._death is None and stalled > self.settings.workers.step_timeout:
            self._die(EngineDiedError(f"no step for {stalled:.0f} s (workers.step_timeout)"))
            for session in list(self._sessions):
                session.fail(self._death)
            if isinstance(self.worker.loop.engine, ProcessEngine):
                self.worker.loop.engine.kill()
        if self._death is not None:
            raise self._death

    def check_model(self, name: str | None) -> None:
        """Raises ApiError 404 where a model of another name is asked for."""
        if name is not None and name != self.model_name:
            raise ApiError(
                404,
                f"there is no model {name!r} here; this is {self.model_name!r}",
                code="model_not_found",
                param="model",
            )

    def open_session(self) -> Session:
        """A session with the engine; its ticket closes it."""
        session = Session(self.worker.loop)
        self._sessions.add(session)
        return session

    def close_session(self, session: Session) -> None:
        """Note what a closed session was."""
        self._sessions.discard(session)
        self._metrics.observe(session)

    def count_request(self, path: str, status: int) -> None:
        """Count an HTTP request that was answered."""
        self._metrics.requests.labels(path, str(status)).inc()

    async def exposition(self) -> bytes:
        """All replicas' metrics as Prometheus text."""
        metrics = self._metrics.collect()
        if self._board is None:
            return exposition({self._name: metrics})
        return await self._board.exchange.remote(self._name, metrics)

    async def report(self) -> None:
        """Tell the board again and again, for scrapes that reach another replica."""
        while self._board is not None:
            with contextlib.suppress(Exception):  # the board is being replaced; the next report reaches the new one
                await self.exposition()
            await asyncio.sleep(REPORT_SECONDS)

    def _die(self, error: EngineDiedError) -> None:
        self._death = error


def model_name(source: str) -> str:
    """The name that clients ask for: a hub id as it stands, else the file's or folder's own."""
    if source.startswith("pip:") or source.endswith(".gguf") or "://" in source or source[:1] in ("/", ".", "~"):
        return PurePosixPath(source.rstrip("/")).name.removesuffix(".gguf")
    return source
