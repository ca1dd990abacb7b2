"""Each format's rows: a bad value is an error of its row, and every other row is unchanged."""

from __future__ import annotations

import datetime
import decimal
import gzip
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfray.config.batch import InputSettings
from hfray.data import csv, lines, readers
from hfray.data.records import python_rows
from hfray.data.scan import scan
from hfray.errors import SettingsError


def read(path, rows_per_block=2, **options):
    table = scan(InputSettings(path=str(path), **options))
    blocks = [block for piece in table.slices for block in readers.read(table, piece, rows_per_block)]
    assert sum(block.num_rows for block in blocks) == table.num_rows
    for block in blocks:
        block.validate(full=True)
    return [row for block in blocks for row in python_rows(block)]


def values(rows, column="x"):
    return [row[column] for row in rows]


def errors(rows):
    return [row["error"] for row in rows]


# --- JSONL -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (rb'{"x": "cut \ud83d"}', "half of a surrogate pair"),
        (rb'{"\ud83d": "x"}', "half of a surrogate pair"),
        (b'{"x": ' + b"[" * 600 + b"]" * 600 + b"}", "nested more than 500 levels deep"),
        (b"[" * 100_000, "nested more than 500 levels deep"),
        (b'{"x": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b'{"x": "\xff"}', "is not JSON"),
        (b"[1]", "is a JSON list, not an object"),
        (b'"' + b"[" * 600 + b'"', "is a JSON str, not an object"),
    ],
)
def test_a_bad_line_is_an_error_of_its_row(tmp_path, line, reason):
    (tmp_path / "a.jsonl").write_bytes(b'{"x": "one"}\n' + line + b'\n{"x": "three"}\n')
    rows = read(tmp_path / "a.jsonl")
    assert values(rows) == ["one", None, "three"]
    assert errors(rows)[0] is errors(rows)[2] is None
    assert errors(rows)[1].startswith("a.jsonl, line 2: ")
    assert reason in errors(rows)[1]


@pytest.mark.parametrize("number", [2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**40, -(2**63) - 1])
def test_integers_of_any_size_keep_their_digits(tmp_path, number):
    (tmp_path / "a.jsonl").write_text(f'{{"x": {number}}}\n{{"x": 1}}\n')
    assert [int(x) for x in values(read(tmp_path / "a.jsonl"))] == [number, 1]
    (tmp_path / "a.jsonl").write_text(f'{{"x": [{number}]}}\n')
    assert [json.loads(x) if isinstance(x, str) else x for x in values(read(tmp_path / "a.jsonl"))] == [[number]]


def test_large_integers_beside_floats_of_another_file(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"x": 9007199254740993}\n{"x": [9007199254740993]}\n')
    (tmp_path / "b.jsonl").write_text('{"x": 0.5}\n{"x": [0.5]}\n')
    assert [json.loads(x) for x in values(read(tmp_path))] == [2**53 + 1, [2**53 + 1], 0.5, [0.5]]


def test_nan_and_infinity_are_numbers(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"x": Infinity}\n{"x": 1.5}\n')
    assert values(read(tmp_path / "a.jsonl")) == [float("inf"), 1.5]


def test_a_file_that_changed_after_the_scan_gives_row_errors(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"x": 1}\n{"x": 2}\n')
    table = scan(InputSettings(path=str(path)))
    path.write_text('{"x": 1}\n{"x": "two"}\n')
    rows = [row for block in readers.read(table, table.slices[0], 8) for row in python_rows(block)]
    assert values(rows) == [1, None]
    assert "a.jsonl, line 2: the value of column 'x' is not a valid int64" in errors(rows)[1]


def test_a_slice_is_read_from_its_own_offset(tmp_path, monkeypatch):
    """A task does not read the file from its beginning, so its memory does not depend on the size of the file."""
    monkeypatch.setattr("hfray.data.files.SLICE_BYTES", 1 << 20)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"x": i, "text": "y" * 1000}) + "\n" for i in range(20_000)))
    table = scan(InputSettings(path=str(path)))
    assert len(table.slices) > 10
    tracemalloc.start()
    block = next(iter(readers.read(table, table.slices[-1], 1)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert block["x"][0].as_py() == table.slices[-1].first_position
    assert peak < 4 << 20


def test_a_compressed_file_is_one_slice(tmp_path, monkeypatch):
    monkeypatch.setattr("hfray.data.files.SLICE_BYTES", 100)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"x": 1}\n' * 100))
    assert len(scan(InputSettings(path=str(tmp_path / "a.jsonl.gz"))).slices) == 1
    assert values(read(tmp_path / "a.jsonl.gz")) == [1] * 100


def test_brackets_inside_strings_do_not_count_as_nesting():
    assert lines.parse_json(b'{"x": "' + rb"\"" + b"[" * 600 + b'"}') == ({"x": '"' + "[" * 600}, None)


def test_a_text_file_beside_another_format_fills_its_own_column_only(tmp_path):
    (tmp_path / "a.csv").write_text("x\none\n")
    (tmp_path / "b.txt").write_text("two\n")
    rows = read(tmp_path)
    assert (values(rows), values(rows, "text")) == (["one", None], [None, "two"])


# --- CSV -------------------------------------------------------------------------------------------------------


def test_an_unclosed_quote_costs_one_row(tmp_path):
    (tmp_path / "a.csv").write_text('id,x\n1,a\n2,"b\n3,c\n4,d\n')
    rows = read(tmp_path / "a.csv")
    assert values(rows, "id") == ["1", None, "3", "4"]
    assert errors(rows) == [None, "a.csv, line 3: opens a quote that never closes", None, None]
    assert values(rows, "row_id") == [f"a.csv:{i}" for i in range(4)]


def test_an_unclosed_quote_before_a_quoted_field_costs_one_row(tmp_path):
    (tmp_path / "a.csv").write_text('id,x\n1,"a\n2,"b"\n3,"c\nc"\n')
    rows = read(tmp_path / "a.csv")
    assert values(rows) == [None, "b", "c\nc"]
    assert "line 2" in errors(rows)[0]


@pytest.mark.parametrize(("field", "value"), [('"a"b', "ab"), ('5" disk', '5" disk'), ('"a""b"', 'a"b'), ('""', "")])
def test_quotes_inside_a_line_keep_their_meaning(tmp_path, field, value):
    (tmp_path / "a.csv").write_text(f"id,x\n1,{field}\n2,z\n")
    assert values(read(tmp_path / "a.csv")) == [value, "z"]


def test_blank_lines_before_the_header_and_between_rows(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf\r\n\r\nid,x\r\n\r\n1,a\r\n")
    rows = read(tmp_path / "a.csv")
    assert (values(rows, "id"), values(rows)) == (["1"], ["a"])


def test_a_row_that_is_not_utf8_is_an_error(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"x\ncaf\xe9\nok\n")
    assert errors(read(tmp_path / "a.csv")) == ["a.csv, line 2: is not UTF-8", None]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("n\u00e4me,x\n1,2\n".encode("latin-1"), "the header line is not UTF-8"),
        ("name,x\n1,2\n".encode("utf-16"), "the header line is not UTF-8"),
        (b'"name,x\n1,2\n', "the header line opens a quote that never closes"),
        (b"a,a\n1,2\n", "column 'a' twice"),
        (b"", "no rows"),
        (b"a,b\n", "no rows"),
    ],
)
def test_an_unusable_header_is_named(tmp_path, content, reason):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(SettingsError, match=reason):
        scan(InputSettings(path=str(tmp_path / "a.csv")))


def test_a_record_has_a_limited_size(tmp_path, monkeypatch):
    """Otherwise an unclosed quote early in a large file would collect the whole file in memory."""
    monkeypatch.setattr(csv, "MAX_RECORD_CHARACTERS", 50)
    (tmp_path / "a.csv").write_text('x\n"open\n' + "line\n" * 100)
    rows = read(tmp_path / "a.csv")
    assert values(rows) == [None] + ["line"] * 100


# --- Parquet ---------------------------------------------------------------------------------------------------


def write(path, array):
    pq.write_table(pa.table({"n": range(len(array)), "x": array}), path)


def test_text_that_is_not_utf8_is_an_error_of_its_row(tmp_path):
    offsets, data = pa.py_buffer(b"\0\0\0\0\1\0\0\0\3\0\0\0"), pa.py_buffer(b"\xffok")
    write(tmp_path / "a.parquet", pa.StringArray.from_buffers(2, offsets, data))
    rows = read(tmp_path / "a.parquet")
    assert values(rows) == [None, "ok"]
    assert values(rows, "n") == [0, 1]
    assert errors(rows)[0].startswith("a.parquet, row 1: the value of column 'x' is not a valid string")
    assert errors(rows)[1] is None


@pytest.mark.parametrize(
    "array",
    [
        pa.array([0, 400_000_000_000], pa.timestamp("ms")),
        pa.array([0, 4_000_000_000_000_000], pa.timestamp("ms")),
        pa.array([0, 1], pa.timestamp("us", tz="Mars/Olympus")),
        pa.array([[4_000_000_000_000_000]], pa.list_(pa.timestamp("ms"))),
        pa.array([0, 1234567891], pa.timestamp("ns")),
    ],
)
def test_times_that_python_cannot_represent_stay_unchanged(tmp_path, array):
    write(tmp_path / "a.parquet", array)
    table = scan(InputSettings(path=str(tmp_path / "a.parquet")))
    block = next(iter(readers.read(table, table.slices[0], 8)))
    assert block["x"].combine_chunks().equals(pq.read_table(tmp_path / "a.parquet")["x"].combine_chunks())
    assert block["error"].null_count == len(array)
    assert len(python_rows(block)) == len(array)


@pytest.mark.parametrize(
    ("first", "second", "expected", "bad"),
    [
        (pa.array([1, 2**53 + 1]), pa.array([0.5]), [1.0, None, 0.5], "double"),
        (pa.array([1, 2**64 - 1], pa.uint64()), pa.array([-1]), [1, None, -1], "int64"),
        (
            pa.array([0, 400_000_000_000], pa.timestamp("s")),
            pa.array([datetime.datetime(2024, 1, 1)], pa.timestamp("ns")),
            ["1970", None, "2024"],
            "timestamp",
        ),
    ],
)
def test_a_value_beyond_the_common_type_is_an_error_of_its_row(tmp_path, first, second, expected, bad):
    write(tmp_path / "a.parquet", first)
    write(tmp_path / "b.parquet", second)
    rows = read(tmp_path)
    found = [str(x)[:4] if isinstance(x, datetime.datetime) else x for x in values(rows)]
    assert found == expected
    assert [error is not None for error in errors(rows)] == [False, True, False]
    assert bad in errors(rows)[1]


def test_string_views(tmp_path):
    write(tmp_path / "a.parquet", pa.array(["a", None], pa.string_view()))
    write(tmp_path / "b.parquet", pa.array(["b"]))
    assert values(read(tmp_path)) == ["a", None, "b"]


def test_reading_without_columns_still_counts_the_rows(tmp_path):
    write(tmp_path / "a.parquet", pa.array(["a", "b", "c"]))
    rows = read(tmp_path / "a.parquet", columns=[])
    assert [set(row) for row in rows] == [{"row_id", "error"}] * 3


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (pa.array([decimal.Decimal("1.10")]), pa.array([0.5])),
        (pa.array(["a"]), pa.array([b"b"])),
        (pa.array([["a"]]), pa.array([[b"b"]])),
        (pa.array([{"k": "a"}]), pa.array([{"k": b"b"}])),
        (pa.array(["a"]), pa.array([1])),
    ],
)
def test_types_without_a_faithful_common_type_are_refused(tmp_path, first, second):
    write(tmp_path / "a.parquet", first)
    write(tmp_path / "b.parquet", second)
    with pytest.raises(SettingsError, match=r"b\.parquet.*do not fit.*x"):
        scan(InputSettings(path=str(tmp_path)))


def test_a_column_that_occurs_twice_is_named(tmp_path):
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2]), pa.array([3])], names=["x", "y", "x"])
    pq.write_table(twice, tmp_path / "b.parquet")
    with pytest.raises(SettingsError, match=r"b\.parquet: the file contains the column 'x' twice\. Rename"):
        scan(InputSettings(path=str(tmp_path / "b.parquet")))
    write(tmp_path / "a.parquet", pa.array([1]))
    with pytest.raises(SettingsError, match=r"b\.parquet: the file contains the column 'x' twice\. Rename"):
        scan(InputSettings(path=str(tmp_path)))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(SettingsError, match=r"a\.parquet: cannot be read as parquet"):
        scan(InputSettings(path=str(tmp_path / "a.parquet")))


# --- several formats -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["b.parquet", "b.csv", "b.txt"])
def test_jsonl_beside_another_format_is_refused(tmp_path, other):
    (tmp_path / "a.jsonl").write_text('{"x": 7}\n')
    if other.endswith("parquet"):
        write(tmp_path / other, pa.array(["007"]))
    else:
        (tmp_path / other).write_text("x,y\n007,1\n")
    with pytest.raises(SettingsError, match=rf"{other}: is .*a\.jsonl is jsonl"):
        scan(InputSettings(path=str(tmp_path)))
