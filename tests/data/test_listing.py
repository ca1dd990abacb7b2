"""The files that an input path selects."""

from __future__ import annotations

import os
import sys

import pytest

from hfray.config.batch import InputSettings
from hfray.data.listing import list_files, pattern_of, split_pattern
from hfray.errors import SettingsError


@pytest.fixture
def tree(tmp_path):
    def make(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text('{"q": 1}\n')
        return tmp_path

    return make


def names(path):
    return [name for _, name in list_files(InputSettings(path=str(path)))]


def test_a_symlink_loop_is_not_followed(tree):
    folder = tree("a.jsonl", "deep/b.jsonl")
    (folder / "deep" / "up").symlink_to(folder, target_is_directory=True)
    assert names(folder) == ["a.jsonl", "deep/b.jsonl"]
    assert names(folder / "**" / "*.jsonl") == ["a.jsonl", "deep/b.jsonl"]


def test_a_symlink_to_another_folder_is_followed(tree):
    folder = tree("data/b.jsonl", "elsewhere/a.jsonl")
    (folder / "data" / "link").symlink_to(folder / "elsewhere", target_is_directory=True)
    assert names(folder / "data") == ["b.jsonl", "link/a.jsonl"]


def test_wildcards_match_no_slash_and_no_hidden_names(tree):
    folder = tree("a.jsonl", ".h.jsonl", "_t.jsonl", "x/b.jsonl", "_hidden/c.jsonl", ".ipynb_checkpoints/a.jsonl")
    assert names(folder / "*.jsonl") == ["a.jsonl"]
    assert names(folder / "*" / "*.jsonl") == ["x/b.jsonl"]
    assert names(folder / "**" / "*.jsonl") == ["a.jsonl", "x/b.jsonl"]
    assert names(folder / "_hidden" / "*.jsonl") == ["c.jsonl"]  # named literally
    assert names(folder / "_*.jsonl") == ["_t.jsonl"]


@pytest.mark.parametrize("name", ["data [v1].jsonl", "what?.jsonl", "a*b.jsonl"])
def test_an_existing_file_with_wildcards_in_its_name_is_literal(tree, name):
    assert names(tree(name, "data v.jsonl", "whats.jsonl", "axb.jsonl") / name) == [name]


def test_an_existing_folder_with_wildcards_in_its_name_is_literal(tree):
    assert names(tree("data [v1]/a.jsonl", "data v/b.jsonl") / "data [v1]") == ["a.jsonl"]


@pytest.mark.parametrize(
    ("glob", "matching", "others"),
    [
        ("/a/*.jsonl", ["/a/x.jsonl"], ["/a/b/x.jsonl", "/a/.x.jsonl", "/ax.jsonl", "/a/x.jsonlx"]),
        ("/a/**/x", ["/a/x", "/a/b/x", "/a/b/c/x"], ["/a/.b/x", "/a/b/xx", "/x"]),
        ("/a/**", ["/a/x", "/a/b/x"], ["/a/_b/x", "/a"]),
        ("/a/part-?", ["/a/part-1"], ["/a/part-", "/a/part-12", "/a/part-/"]),
        ("/a/[ab].x", ["/a/a.x"], ["/a/c.x"]),
        ("/a/x[!0-9]", ["/a/xa"], ["/a/x1", "/a/x/"]),
        ("/a/x[^]", ["/a/x^"], ["/a/xa"]),
        ("/a/x[", ["/a/x["], ["/a/x"]),
        ("/a/(b|c)+*", ["/a/(b|c)+"], ["/a/b"]),
    ],
)
def test_patterns(glob, matching, others):
    pattern = pattern_of(glob)
    assert [name for name in [*matching, *others] if pattern.fullmatch(name)] == matching


def test_the_folder_before_the_first_wildcard():
    assert split_pattern("/a/b/c*/d") == ("/a/b", "c*/d")
    assert split_pattern("bucket/x-[12]") == ("bucket", "x-[12]")


@pytest.mark.parametrize("path", ["nothing.jsonl", "*.jsonl", "empty"])
def test_a_path_without_files_is_named(tmp_path, path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingsError, match=r"input\.path=.*Check the path"):
        list_files(InputSettings(path=str(tmp_path / path)))


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes only on Linux")
def test_a_file_name_that_is_not_utf8_is_named(tmp_path):
    with open(os.fsencode(tmp_path) + b"/caf\xe9.jsonl", "w") as file:
        file.write('{"q": 1}\n')
    with pytest.raises(SettingsError, match=r"is not UTF-8\. Rename the file"):
        list_files(InputSettings(path=str(tmp_path)))
