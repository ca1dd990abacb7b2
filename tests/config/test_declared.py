"""Declared types of the settings, and the settings keys of pydantic's error locations."""

from __future__ import annotations

import pytest

from hfray.config.batch import BatchSettings
from hfray.config.declared import declared_types, locate
from hfray.tools.bench_cases import BenchSettings


@pytest.mark.parametrize(
    ("location", "key"),
    [
        (("plan",), "plan"),
        (("input", "path", "list[str]", 1), "input.path[1]"),
        (("backend", "vllm", "option"), "backend.option"),
        (("workers", "workers", "size", "int"), "workers.size"),
        (("workers", "workers", "size", "literal['auto']"), "workers.size"),
        (("workers", "workers", "labels", 1, "[key]"), "workers.labels[1]"),
        (("workers", "workers", "resources", "disk"), "workers.resources.disk"),
        (("workers", "pools", 1, "backend", "fake", "fake"), "workers[1].backend.fake"),
        (("workers", "pools", 0, "device", "map", "str"), "workers[0].device.map"),
        (("device", "map", "dict[str,any]", "a"), "device.map.a"),
    ],
)
def test_locations(location, key):
    assert locate(BatchSettings, location).key == key


def test_siblings_are_those_of_the_chosen_backend():
    place = locate(BatchSettings, ("workers", "pools", 1, "backend", "vllm", "option"))
    assert "workers[1].backend.options" in place.siblings
    assert "workers[1].backend.ov_config" not in place.siblings


def test_declared_types_of_a_command():
    declared = dict(declared_types(BenchSettings))
    assert declared["input.path"] == {str, list}
    assert declared["workers.labels.*"] == {str}
    assert declared["bench.rounds"] == {int}
    assert "serve.port" not in declared
