"""One Ray for all tests of this folder that only need a job to run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package")
def shared_ray() -> Iterator[None]:
    """A local Ray of four CPUs; `run_batch` uses the Ray that its process is connected to."""
    import ray

    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
