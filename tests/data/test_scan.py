"""Scanning and reading tables: every format, every kind of broken line, and unchanged values."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfray.config.batch import InputSettings
from hfray.data import readers
from hfray.data.scan import scan
from hfray.errors import SettingsError

ROWS = [
    {"question": "when?", "day": "2024-01-01", "meta": {"a": 1, "b": [1, 2]}, "n": 1, "flag": True},
    {"question": "שלום 😀", "day": "2024-02-30T00:00:00Z", "meta": {"a": 2, "b": []}, "n": 2, "flag": None},
    {"question": "nul \x00 inside", "day": "", "meta": None, "n": None, "flag": False},
]


def read(path, rows_per_block=2, **options):
    table = scan(InputSettings(path=str(path), **options))
    blocks = [block for piece in table.slices for block in readers.read(table, piece, rows_per_block)]
    assert sum(block.num_rows for block in blocks) == table.num_rows
    assert all(block.num_rows <= rows_per_block for block in blocks)
    assert len({block.schema for block in blocks}) == 1
    return pa.concat_tables(blocks).to_pylist()


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def without_own(rows):
    return [{k: v for k, v in row.items() if k not in ("row_id", "error")} for row in rows]


def test_jsonl_values_stay_unchanged(tmp_path):
    rows = read(write_jsonl(tmp_path / "a.jsonl", ROWS))
    assert without_own(rows) == ROWS
    assert [row["row_id"] for row in rows] == ["a.jsonl:0", "a.jsonl:1", "a.jsonl:2"]


def test_files_of_several_paths_are_read_once_and_named_by_their_relative_path(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "a.jsonl", ROWS[:1])
    both = [str(tmp_path / "one"), str(tmp_path / "two")]
    read_once = scan(InputSettings(path=[*both, str(tmp_path / "two" / "a.jsonl"), str(tmp_path / "*" / "a.jsonl")]))
    ids = [
        row
        for piece in read_once.slices
        for block in readers.read(read_once, piece, 2)
        for row in block["row_id"].to_pylist()
    ]
    assert ids == [f"{folder}/a.jsonl:0" for folder in both]
    alone = scan(InputSettings(path=[both[0], str(tmp_path / "one" / "a.jsonl")]))
    assert [block["row_id"][0].as_py() for block in readers.read(alone, alone.slices[0], 2)] == ids[
        :1
    ]  # as beside another


def test_parquet_values_stay_unchanged(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=2)
    assert without_own(read(tmp_path / "a.parquet")) == ROWS


def test_objects_of_differing_keys_stay_json_text(tmp_path):
    rows = [{"o": {"a": 1}}, {"o": {"b": "x"}}, {"o": None}, {"o": {}}]
    read_back = read(write_jsonl(tmp_path / "a.jsonl", rows))
    assert [None if row["o"] is None else json.loads(row["o"]) for row in read_back] == [row["o"] for row in rows]


def test_numbers_among_strings_become_text(tmp_path):
    rows = read(write_jsonl(tmp_path / "a.jsonl", [{"x": 1}, {"x": "one"}, {"x": 2.5}, {"x": 1 << 80}]))
    assert [row["x"] for row in rows][:3] == ["1", "one", "2.5"]


def test_large_integers_do_not_become_floats(tmp_path):
    rows = read(write_jsonl(tmp_path / "a.jsonl", [{"x": (1 << 60) + 1}, {"x": 0.5}]))
    assert rows[0]["x"] == str((1 << 60) + 1)


def test_broken_lines_are_error_rows_with_their_line_number(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"q": "one"}\n\n{"q": "tw\n[1]\n{"q": "\xff\xfe"}\n{"q": "six"}')
    rows = read(path)
    assert [row["q"] for row in rows] == ["one", None, None, None, "six"]
    assert rows[1]["error"].startswith("a.jsonl, line 3: is not JSON")
    assert "line 4: is a JSON list" in rows[2]["error"]
    assert "line 5" in rows[3]["error"]
    assert rows[4]["row_id"] == "a.jsonl:5"


def test_bom_crlf_and_gzip(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"q": "one"}\r\n{"q": "two"}\r\n')
    assert [row["q"] for row in read(tmp_path / "a.jsonl")] == ["one", "two"]
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"q": "one"}\n{"q": "two"}\n'))
    assert [row["q"] for row in read(tmp_path / "b.jsonl.gz")] == ["one", "two"]


def test_csv_keeps_strings_and_reports_ragged_lines(tmp_path):
    (tmp_path / "a.csv").write_text('id,q\n001,"two\nlines"\n2\n3,x\n')
    rows = read(tmp_path / "a.csv")
    assert [(row["id"], row["q"]) for row in rows] == [("001", "two\nlines"), (None, None), ("3", "x")]
    assert rows[1]["error"] == "a.csv, line 4: has 1 fields, and the header has 2"


def test_each_line_of_a_text_file_is_a_row(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\nthree\n")
    assert [row["text"] for row in read(tmp_path / "a.txt")] == ["one", "", "three"]


def test_folders_globs_and_lists(tmp_path):
    for name in ("x/a.jsonl", "x/y/b.jsonl", "z/a.jsonl", "x/_hidden/c.jsonl", "x/notes.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(tmp_path / name, [{"q": name}])
    assert [row["row_id"] for row in read(tmp_path / "x")] == ["a.jsonl:0", "y/b.jsonl:0"]
    assert {row["q"] for row in read(tmp_path / "*/a.jsonl")} == {"x/a.jsonl", "z/a.jsonl"}
    table = scan(InputSettings(path=[str(tmp_path / "x"), str(tmp_path / "z")]))
    ids = [i for s in table.slices for b in readers.read(table, s, 10) for i in b["row_id"].to_pylist()]
    assert len(set(ids)) == 3


def test_slices_of_a_large_file_cover_it_once(tmp_path, monkeypatch):
    monkeypatch.setattr("hfray.data.files.SLICE_BYTES", 100)
    rows = [{"q": f"question {i} {'x' * (i % 50)}"} for i in range(100)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    table = scan(InputSettings(path=str(path)))
    assert len(table.slices) > 10
    assert without_own(read(path, rows_per_block=7)) == rows
    limited = read(path, rows_per_block=7, limit=33)
    assert without_own(limited) == rows[:33]


def test_limit_and_columns(tmp_path):
    pq.write_table(
        pa.table({"a": range(10), "b": range(10), "error_code": range(10)}), tmp_path / "a.parquet", row_group_size=3
    )
    rows = read(tmp_path / "a.parquet", limit=5, columns=["b"])
    assert without_own(rows) == [{"b": i} for i in range(5)]


def test_the_id_column_is_the_row_id(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"id": 7, "q": "x"}, {"id": None, "q": "y"}, {"id": 9, "q": "z"}])
    assert [row["row_id"] for row in read(path, id_column="id")] == ["7", "a.jsonl:1", "9"]


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (None, {}, ["a.jsonl", "no such file"]),
        ("", {}, ["a.jsonl", "no rows"]),
        ("\n\n", {}, ["no rows"]),
        ('{"prompt": 1}\n', {}, ["'prompt'", "output column", "input.columns"]),
        ('{"error": 1}\n', {}, ["'error'", "output column"]),
        ('{"id": 1}\n{"id": 2}\n{"id": 1}\n', {"id_column": "id"}, ["input.id_column=id", "'1'", "more than once"]),
        ('{"id": 1}\n', {"id_column": "key"}, ["input.id_column=key", "Columns: id"]),
        ('{"id": 1}\n', {"columns": ["x"]}, ["'x'", "Columns: id"]),
        ("not parquet", {"format": "parquet"}, ["a.jsonl", "parquet"]),
    ],
)
def test_unusable_input_is_named(tmp_path, content, options, words):
    path = tmp_path / "a.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingsError) as caught:
        scan(InputSettings(path=str(path), **options))
    for word in words:
        assert word in str(caught.value)


def test_an_unknown_file_extension_asks_for_the_format(tmp_path):
    (tmp_path / "a.dat").write_text('{"q": 1}\n')
    with pytest.raises(SettingsError, match=r"input\.format"):
        scan(InputSettings(path=str(tmp_path / "a.dat")))
    assert len(read(tmp_path / "a.dat", format="jsonl")) == 1
