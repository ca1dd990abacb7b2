"""How many rows an engine runs at once."""

from __future__ import annotations

import pytest

from hfray.engines.capacity import capacity_for_cache, capacity_of, least_capacity_of
from tests.conftest import batch_settings


@pytest.mark.parametrize(("tokens", "rows"), [(10_000, 128), (64_000, 200), (1 << 20, 256)])
def test_openvino_runs_as_many_rows_as_its_cache_has_room_for(tokens, rows):
    assert capacity_for_cache(tokens) == rows


@pytest.mark.parametrize(
    ("backend", "least"),
    [
        ([], 128),
        (["backend.batch_size=7"], 7),
        (["conf=fake"], 64),
        (["conf=smollm2_cpu"], 32),
        (["conf=bloom_gpu"], 256),
        (["conf=bloom_gpu", "backend=transformers"], 256),
        (["conf=bloom_gpu", "backend=vllm"], 256),
    ],
)
def test_replicas_are_added_by_what_an_engine_surely_takes(backend, least):
    """Replicas counted with the greatest capacity: an engine with a small KV cache refused requests, and no replica started."""
    settings = batch_settings(*backend, "input.path=-", "output.path=-")
    assert least_capacity_of(settings) == least <= capacity_of(settings)
