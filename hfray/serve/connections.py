"""A time limit for the headers of a request. uvicorn, the HTTP server of Ray Serve's proxy, has none.

Without it, a client that opens connections and never finishes its headers holds them for ever.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

VARIABLE = "HFRAY_HEADER_TIMEOUT"  # of the proxy's environment: seconds (serve.header_timeout)
DEFAULT_SECONDS = 30.0


def limit_header_time(protocol: Any = None, seconds: float | None = None) -> None:
    """Close connections that are idle from the start, or whose headers are not complete in time.

    Args:
        protocol: uvicorn's class of connections; by default, the class that uvicorn chooses here.
        seconds: the limit; by default, that of the environment.
    """
    if protocol is None:
        from uvicorn.protocols.http.auto import AutoHTTPProtocol

        protocol = AutoHTTPProtocol
    limit = seconds or float(os.environ.get(VARIABLE) or DEFAULT_SECONDS)
    connection_made, data_received = protocol.connection_made, protocol.data_received

    def made(self: Any, transport: asyncio.Transport) -> None:
        connection_made(self, transport)
        _watch(self, limit)

    def received(self: Any, data: bytes) -> None:
        data_received(self, data)
        _watch(self, limit)

    protocol.connection_made, protocol.data_received = made, received


def _watch(connection: Any, seconds: float) -> None:
    """Start the clock if the connection waits for the end of headers; stop it if a request runs."""
    timer = getattr(connection, "_header_timer", None)
    if _runs_request(connection):
        if timer is not None:
            timer.cancel()
        connection._header_timer = None
    elif timer is None:
        connection._header_timer = asyncio.get_running_loop().call_later(seconds, _close, connection)


def _close(connection: Any) -> None:
    if not _runs_request(connection):
        connection.transport.close()


def _runs_request(connection: Any) -> bool:
    return connection.cycle is not None and not connection.cycle.response_complete
