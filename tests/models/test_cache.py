"""The cache: an entry is complete or absent, and exactly one process makes it."""

from __future__ import annotations

import threading
import time

import pytest

from hfray.errors import SettingsError
from hfray.models.cache import cache_folder, cached


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HFRAY_CACHE", str(tmp_path / "cache"))


def write(folder):
    (folder / "weights").write_text("all of them")


def test_an_entry_is_made_once_and_found_again():
    first = cached("kind", "org/name@1", write)
    assert first.parent == cache_folder() / "kind"
    assert "/" not in first.name
    assert (first / "weights").read_text() == "all of them"

    def fail(folder):
        raise AssertionError("the entry exists already")

    assert cached("kind", "org/name@1", fail) == first


def test_a_failed_entry_leaves_nothing_and_is_made_again():
    def fail(folder):
        write(folder)
        raise ValueError("broken off")

    with pytest.raises(ValueError, match="broken off"):
        cached("kind", "name", fail)
    assert not (cache_folder() / "kind" / "name").exists()
    assert not list((cache_folder() / "kind").glob(".making-*"))
    assert (cached("kind", "name", write) / "weights").exists()


def test_the_remains_of_a_killed_process_are_never_used():
    """A killed process leaves its temporary folder and its lock file behind."""
    remains = cache_folder() / "kind" / ".making-abc" / "entry"
    remains.mkdir(parents=True)
    (remains / "weights").write_text("half")
    (cache_folder() / "kind" / "name.lock").touch()
    assert (cached("kind", "name", write) / "weights").read_text() == "all of them"


def test_several_makers_make_one_entry():
    made = []

    def slowly(folder):
        made.append(folder)
        time.sleep(0.1)
        write(folder)

    makers = [threading.Thread(target=cached, args=("kind", "name", slowly)) for _ in range(4)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert len(made) == 1
    assert len((cache_folder() / "kind" / "name.made").read_text().splitlines()) == 1


def test_an_unusable_cache_folder_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HFRAY_CACHE", str(tmp_path / "file"))
    with pytest.raises(SettingsError, match=r"HFRAY_CACHE=.*file.*Set HFRAY_CACHE"):
        cached("kind", "name", write)
