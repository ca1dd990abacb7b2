"""How much of a GPU a process may take; the figures stand for GPUs that are not there."""

from __future__ import annotations

import pytest

from hfray.engines import load
from hfray.engines.torch.memory import usable_bytes
from hfray.inference.worker import Worker
from tests.conftest import batch_settings

GIB = 1 << 30


@pytest.mark.parametrize(
    ("free", "taken", "share", "expected"),
    [
        (76, 4, 1.0, 76),  # alone on the GPU
        (76, 4, 0.5, 36),  # the first of two workers: half of the GPU, less its weights
        (36, 4, 0.5, 36),  # the second, after the first took its half
        (10, 4, 0.5, 10),  # somebody else uses the GPU too
        (60, 20, 0.25, 0),  # the weights already take the share
    ],
)
def test_a_worker_takes_no_more_than_its_share(free, taken, share, expected):
    assert usable_bytes(free * GIB, 80 * GIB, taken * GIB, share) == expected * GIB


@pytest.mark.parametrize(("gpus", "share"), [("auto", 1.0), ("0", 1.0), ("0.25", 0.25), ("1", 1.0), ("4", 1.0)])
def test_the_share_of_the_workers_settings_reaches_the_engine(monkeypatch, gpus, share):
    settings = batch_settings("conf=fake", "input.path=-", "output.path=-", f"workers.gpus={gpus}")
    assert settings.workers.gpu_share == share
    loaded = []
    make = load._load
    monkeypatch.setattr(load, "_load", lambda *arguments: loaded.append(arguments[-1]) or make(*arguments))
    for apart in (False, True):
        Worker(settings, apart=apart).loop.close()
    assert loaded == [share, share]
