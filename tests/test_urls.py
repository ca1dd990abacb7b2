"""Paths and cloud URLs as text."""

from __future__ import annotations

from pathlib import Path

import pytest

from hfray.urls import absolute, file_address, is_url, without_hash, without_query


def test_urls_and_paths_are_distinguished():
    assert is_url("s3://bucket/a")
    assert not is_url("a/b:c")


def test_local_paths_become_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert absolute("a/b") == str(tmp_path / "a/b")
    assert absolute("~/a") == "/home/someone/a"
    assert absolute("/a/b") == "/a/b"
    assert absolute("s3://bucket/a") == "s3://bucket/a"


def test_symlinks_are_kept(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    assert absolute(str(tmp_path / "link" / "a")) == str(tmp_path / "link" / "a")


@pytest.mark.parametrize(
    ("path", "without"),
    [
        ("s3://bucket/x.jsonl?scheme=http", "s3://bucket/x.jsonl"),
        ("s3://bucket/x?.jsonl", "s3://bucket/x?.jsonl"),
        ("x?a=b.jsonl", "x?a=b.jsonl"),
    ],
)
def test_filesystem_options_are_removed_from_urls_only(path, without):
    assert without_query(path) == without


def test_addresses_of_files_keep_the_options_of_the_root():
    root = "s3://bucket/in?endpoint_override=host:1"
    assert file_address(root, "bucket/in/a b.jsonl") == "s3://bucket/in/a%20b.jsonl?endpoint_override=host:1"
    assert file_address("file:///in", "/in/a b") == "/in/a b"
    assert file_address(str(Path("/in")), "/in/a") == "/in/a"


def test_only_a_package_has_a_hash():
    assert without_hash("pip:p==1/a.gguf#sha256=00") == "pip:p==1/a.gguf"
    assert without_hash("/models/a#sha256=00") == "/models/a#sha256=00"
