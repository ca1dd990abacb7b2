"""API keys: their sources, accepted headers, and rotation."""

from __future__ import annotations

import pickle

import pytest

from hfray.config.serve import ServerSettings
from hfray.errors import SettingsError
from hfray.serve import keys
from hfray.serve.keys import ApiKeys


def test_no_keys():
    assert not ApiKeys.read(ServerSettings())


def test_keys_of_a_variable(monkeypatch):
    monkeypatch.setenv("TEST_KEYS", "one, two")
    found = ApiKeys.read(ServerSettings(api_keys="env:TEST_KEYS"))
    assert found
    assert found.accepts(b"Bearer one")
    assert found.accepts(b"bearer two ")
    for header in (b"", b"one", b"Bearer", b"Bearer ", b"Bearer three", b"Basic one"):
        assert not found.accepts(header)


def test_keys_are_kept_as_hashes_only(tmp_path):
    path = tmp_path / "keys"
    path.write_text("very-secret\n")
    assert b"very-secret" not in pickle.dumps(ApiKeys.read(ServerSettings(api_keys=f"file:{path}")))


def test_keys_that_cannot_be_read(tmp_path):
    empty = tmp_path / "empty"
    empty.write_text("\n")
    for source in ("env:NO_SUCH_VARIABLE", f"file:{tmp_path}/none", f"file:{empty}"):
        with pytest.raises(SettingsError, match=r"serve\.api_keys"):
            ApiKeys.read(ServerSettings(api_keys=source))


def test_a_rotated_file_is_read_again(tmp_path, monkeypatch):
    path = tmp_path / "keys"
    path.write_text("old")
    found = ApiKeys.read(ServerSettings(api_keys=f"file:{path}"))
    path.write_text("newer")
    assert found.accepts(b"Bearer old")  # until the next check
    monkeypatch.setattr(keys, "REFRESH_SECONDS", 0.0)
    assert not found.accepts(b"Bearer old")
    assert found.accepts(b"Bearer newer")


def test_a_file_that_becomes_unusable_leaves_the_old_keys_valid(tmp_path, monkeypatch):
    path = tmp_path / "keys"
    path.write_text("old")
    found = ApiKeys.read(ServerSettings(api_keys=f"file:{path}"))
    monkeypatch.setattr(keys, "REFRESH_SECONDS", 0.0)
    path.write_text("")
    assert found.accepts(b"Bearer old")
    path.unlink()
    assert found.accepts(b"Bearer old")
    path.write_text("new")
    assert found.accepts(b"Bearer new")
