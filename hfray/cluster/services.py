"""The processes of Ray's own that a local Ray starts.

Ray starts as many helper processes on a laptop as on the head node of a cluster. Each takes about a second of CPU time
when it starts. Later each takes a core from the engine many times a second, and an engine waits for the slowest of its
threads: on two cores, these three cost a job about two percent of its speed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

UNUSED = (
    "start_log_monitor",  # sends the workers' output to the driver (ray.init(log_to_driver=True))
    "start_monitor",  # adds nodes to a cluster and removes them
    "start_api_server",  # the dashboard; without it (include_dashboard=False) the process only reports usage
)


@contextlib.contextmanager
def without_unused(ray: Any) -> Iterator[None]:
    """A local Ray that starts in this context does not start the processes that nobody uses."""
    node = ray._private.node.Node
    starts = {name: getattr(node, name) for name in UNUSED if hasattr(node, name)}
    for name in starts:
        setattr(node, name, lambda self, **options: None)
    try:
        yield
    finally:
        for name, start in starts.items():
            setattr(node, name, start)
