"""Bounds of workers and checks of the service's settings."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from hfray.config.serve import ServerSettings, is_loopback
from hfray.config.workers import PoolSettings, WorkerSettings, check_pools


@pytest.mark.parametrize(("size", "bounds"), [("auto", (1, 1)), (3, (3, 3)), ([1, 4], (1, 4))])
def test_bounds(size, bounds):
    assert WorkerSettings(size=size).bounds == bounds


@pytest.mark.parametrize("values", [{"size": 0}, {"size": [3, 1]}, {"size": [1, 2, 3]}, {"size": [1]}, {"cpus": 0}])
def test_impossible_workers_are_refused(values):
    key = next(iter(values))
    with pytest.raises(ValidationError, match=rf"workers\.{key}="):
        WorkerSettings(**values)


def test_a_pool_without_an_engine():
    assert PoolSettings(name="x", size=2, cpus=3).workers == WorkerSettings(size=2, cpus=3)


@pytest.mark.parametrize(
    ("pools", "words"),
    [
        ([], "names no pool"),
        ([PoolSettings(name="a"), PoolSettings(name="a")], r"workers\[0\]\.name=a"),
        ([PoolSettings(rows_per_block=4), PoolSettings(rows_per_block=8)], r"4, 8"),
    ],
)
def test_pools_that_do_not_fit_together(pools, words):
    with pytest.raises(ValueError, match=words):
        check_pools(pools)


@pytest.mark.parametrize(
    ("host", "local"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("host", False)]
)
def test_loopback(host, local):
    assert is_loopback(host) is local


def test_a_public_address_needs_keys():
    with pytest.raises(ValidationError, match=r"serve\.host=0\.0\.0\.0.*serve\.api_keys"):
        ServerSettings(host="0.0.0.0")
    assert ServerSettings(host="0.0.0.0", api_keys="env:KEYS").api_keys == "env:KEYS"
    assert ServerSettings(host="0.0.0.0", allow_public=True).allow_public


def test_keys_themselves_are_not_repeated():
    with pytest.raises(ValidationError, match=r"must be env:NAME") as caught:
        ServerSettings(api_keys="sk-hush")
    assert "sk-hush" not in caught.value.errors()[0]["msg"]
