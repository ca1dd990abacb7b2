"""The manifest notices every change of the input that would match rows to wrong positions."""

from __future__ import annotations

import gzip
import os

import pytest

from hfray.config.batch import InputSettings
from hfray.data import manifest
from hfray.data.scan import scan
from hfray.errors import SettingsError

LINES = [f'{{"n": {number}, "text": "{"word " * 50}"}}\n' for number in range(2_000)]


@pytest.fixture
def jsonl(tmp_path):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.jsonl"
    path.write_text("".join(LINES))
    return path


def look(path, **settings):
    return scan(InputSettings(path=str(path), **settings))


def test_an_unchanged_input_keeps_its_manifest(jsonl):
    before = manifest.take_stamps(look(jsonl))
    assert manifest.check_unchanged(look(jsonl), before) == before
    assert manifest.from_json(manifest.to_json(before)) == before


def test_a_new_time_alone_is_no_change(jsonl):
    before = manifest.take_stamps(look(jsonl))
    os.utime(jsonl, (1, 1))
    assert manifest.check_unchanged(look(jsonl), before) == before


def test_more_lines_at_the_end_are_no_change(jsonl):
    before = manifest.take_stamps(look(jsonl))
    with jsonl.open("a") as file:
        file.write(LINES[0])
    after = manifest.check_unchanged(look(jsonl), before)
    assert after["a.jsonl"].size == before["a.jsonl"].size + len(LINES[0])


@pytest.mark.parametrize(
    "content",
    [
        "".join([LINES[5], *LINES]),
        "".join(LINES[:-1]),
        "".join(LINES[1:]),
        "".join(LINES).replace("word", "WORD"),
        "".join([*LINES[:1000], LINES[1].replace("1", "8"), *LINES[1000:]]),
    ],
    ids=["line prepended", "line removed at the end", "line removed at the start", "same size", "line inserted"],
)
def test_a_changed_file_is_named(jsonl, content):
    before = manifest.take_stamps(look(jsonl))
    jsonl.write_text(content)
    os.utime(jsonl, (1, 1))
    with pytest.raises(SettingsError, match=r"input\.path=.*'a\.jsonl' changed .* output\.path"):
        manifest.check_unchanged(look(jsonl), before)


def test_a_last_line_without_a_newline_may_not_grow(jsonl):
    jsonl.write_text("".join(LINES).removesuffix("\n"))
    before = manifest.take_stamps(look(jsonl))
    jsonl.write_text("".join(LINES) + LINES[0])
    with pytest.raises(SettingsError, match="changed"):
        manifest.check_unchanged(look(jsonl), before)


def test_a_compressed_file_may_not_grow(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress("".join(LINES[:2]).encode(), mtime=0))
    before = manifest.take_stamps(look(path))
    path.write_bytes(path.read_bytes() + gzip.compress(LINES[3].encode(), mtime=0))
    with pytest.raises(SettingsError, match="changed"):
        manifest.check_unchanged(look(path), before)


def test_files_may_be_added_but_not_removed(jsonl):
    folder = jsonl.parent
    before = manifest.take_stamps(look(folder))
    (folder / "b.jsonl").write_text(LINES[0])
    joined = manifest.check_unchanged(look(folder), before)
    assert set(joined) == {"a.jsonl", "b.jsonl"}
    jsonl.unlink()
    with pytest.raises(SettingsError, match=r"'a\.jsonl' is gone"):
        manifest.check_unchanged(look(folder), joined)


def test_a_limit_may_leave_files_out(jsonl):
    (jsonl.parent / "b.jsonl").write_text(LINES[0])
    before = manifest.take_stamps(look(jsonl.parent))
    assert manifest.check_unchanged(look(jsonl.parent, limit=3), before) == before


def test_rows_with_ids_may_change(jsonl):
    before = manifest.take_stamps(look(jsonl, id_column="n"))
    jsonl.write_text("".join(LINES[10:]))
    after = manifest.check_unchanged(look(jsonl, id_column="n"), before)
    assert after["a.jsonl"].size < before["a.jsonl"].size


def test_a_damaged_manifest_is_a_value_error():
    for values in ({}, {"files": 3}, {"files": {"a": {"size": 1}}}):
        with pytest.raises(ValueError):
            manifest.from_json(values)
