"""Which Ray a job uses. Starts no Ray."""

from dataclasses import replace

import pytest

from hfray.cluster.connection import is_local
from hfray.config.workers import RaySettings
from tests.conftest import batch_settings

SETTINGS = batch_settings("conf=fake", "input.path=-", "output.path=-")


@pytest.mark.parametrize(
    ("address", "variable", "local"),
    [
        (None, None, True),
        ("local", "10.0.0.1:6379", True),
        (None, "10.0.0.1:6379", False),
        ("auto", None, False),
        (None, "", True),
    ],
)
def test_the_address_decides_whether_ray_is_local(monkeypatch, address, variable, local):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    assert is_local(replace(SETTINGS, ray=RaySettings(address=address))) == local
