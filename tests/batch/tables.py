"""Generates input files of every format for property-based tests, each with the rows that a run must answer."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

KEY = "key"  # a column of every file but text, with a unique value in every row
Values = dict[str, object] | None  # a row's values; None for a row that cannot be read


@dataclass(slots=True)
class InputFile:
    """One generated file.

    Attributes:
        rows: the row's position in the file (as in row ids), and its values.
    """

    name: str
    content: bytes
    rows: list[tuple[int, Values]]
    schema: pa.Schema | None = None


@dataclass(slots=True)
class Case:
    """A table, settings, and the points at which its runs are killed.

    Attributes:
        kills: for every killed run, how many files it finishes, and how it dies (see test_promise).
        usable: whether the table must be accepted; a table of mixed types may be refused.
    """

    files: list[InputFile]
    columns: list[str] | None
    limit: int | None
    by_id: bool
    rows_per_block: int
    slice_bytes: int
    kills: list[tuple[int, str]]
    retry_errors: bool
    usable: bool


# --- JSONL -----------------------------------------------------------------------------------------------------

TEXT = st.text(max_size=6)
NUMBERS = st.integers(-(2**66), 2**66) | st.integers(-9, 9) | st.integers(2**53 - 2, 2**53 + 2)
SCALARS = [st.booleans(), NUMBERS, st.floats(), TEXT, st.integers(-9, 9) | st.floats()]
WILD = st.recursive(
    st.none() | st.one_of(SCALARS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=6,
)
JSON_COLUMNS = st.sampled_from(
    [
        *SCALARS,
        WILD,
        *(st.lists(st.none() | scalar, max_size=3) for scalar in SCALARS),
        st.fixed_dictionaries({"a": st.none() | TEXT, "b": st.lists(NUMBERS, max_size=2)}),
        st.integers(30, 36).map(lambda depth: json.loads("[" * depth + "]" * depth)),
    ]
)
BAD_JSON = [
    b"{",
    b"[1]",
    b"null",
    b'{"x": "\xff"}',
    b'{"x": "\\ud83d"}',
    b'{"x": ' + b"[" * 600 + b"]" * 600 + b"}",
]
JSON_NAMES = st.lists(st.sampled_from(["x", "question", "a.b", "ä b", "", "a:1", "{x}"]), max_size=3, unique=True)


@st.composite
def jsonl_file(draw, number: int, columns: dict[str, st.SearchStrategy]):
    lines, rows = [], []
    for position in range(draw(st.integers(0, 12))):
        kind = draw(st.sampled_from(["row"] * 8 + ["bad", "blank"]))
        if kind == "row":
            values: dict[str, object] = {KEY: f"{number}-{position}"}
            for name, strategy in columns.items():
                if draw(st.integers(0, 4)):
                    values[name] = draw(st.none() | strategy)
            lines.append(json.dumps(values, ensure_ascii=draw(st.booleans())).encode())
            rows.append((position, values))
        elif kind == "bad":
            lines.append(draw(st.sampled_from(BAD_JSON)))
            rows.append((position, None))
        else:
            lines.append(draw(st.sampled_from([b"", b"  "])))
    return draw(_as_file(number, "jsonl", lines, rows))


# --- CSV and text ----------------------------------------------------------------------------------------------


@st.composite
def csv_file(draw, number: int, names: list[str]):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow([KEY, *names])
    content, rows = text.getvalue().encode(), []
    for position in range(draw(st.integers(0, 12))):
        if draw(st.integers(0, 8)):
            values = {KEY: f"{number}-{position}"} | {name: draw(TEXT) for name in names}
            text = io.StringIO(newline="")
            csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL).writerow(values.values())
            content += text.getvalue().encode()
            rows.append((position, values))
        else:
            content += draw(st.sampled_from([b'"a","b","c","d","e","f"\n', b'"\xff"\n' if not names else b"x\n"]))
            rows.append((position, None))
    return draw(_compressed(number, "csv", content, rows))


@st.composite
def text_file(draw, number: int):
    characters = st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\ufeff")
    texts = draw(st.lists(st.none() | st.text(characters, max_size=6), max_size=12))
    lines = [b"\xff" if text is None else text.encode() for text in texts]
    rows = [(n, None if text is None else {"text": text}) for n, text in enumerate(texts)]
    if lines and not lines[-1]:
        lines[-1], rows[-1] = b"end", (rows[-1][0], {"text": "end"})  # without line end, an empty line is no line
    return draw(_as_file(number, "txt", lines, rows))


@st.composite
def _as_file(draw, number: int, extension: str, lines: list[bytes], rows: list[tuple[int, Values]]):
    end = draw(st.sampled_from([b"\n", b"\r\n"]))
    content = end.join(lines) + (end if lines and draw(st.booleans()) else b"")
    return draw(_compressed(number, extension, content, rows))


@st.composite
def _compressed(draw, number: int, extension: str, content: bytes, rows: list[tuple[int, Values]]):
    compression = draw(st.sampled_from(["", "", ".gz", ".bz2", ".zst"]))
    if compression == ".gz":
        content = gzip.compress(content, 1)
    elif compression == ".bz2":
        content = bz2.compress(content, 1)
    elif compression == ".zst":
        content = pa.compress(content, "zstd", asbytes=True)
    return InputFile(f"file{number}.{extension}{compression}", content, rows)


# --- Parquet ---------------------------------------------------------------------------------------------------

INTEGERS = {
    kind: st.integers(low, high)
    for kind, low, high in [
        (pa.int8(), -(2**7), 2**7 - 1),
        (pa.int32(), -(2**31), 2**31 - 1),
        (pa.int64(), -(2**63), 2**63 - 1),
        (pa.uint8(), 0, 2**8 - 1),
        (pa.uint64(), 0, 2**64 - 1),
    ]
}
BYTES = st.binary(max_size=5)
LONG = st.integers(-(2**62), 2**62)  # of time units; years far beyond what Python's datetime knows
PRIMITIVES: dict[pa.DataType, st.SearchStrategy] = {
    **INTEGERS,
    pa.bool_(): st.booleans(),
    pa.float32(): st.floats(width=32),
    pa.float64(): st.floats(),
    pa.string(): TEXT,
    pa.large_string(): TEXT,
    pa.string_view(): TEXT,
    pa.binary(): BYTES,
    pa.binary_view(): BYTES,
    pa.large_binary(): BYTES,
    pa.binary(3): st.binary(min_size=3, max_size=3),
    pa.date32(): st.dates(),
    pa.time64("us"): st.times(),
    pa.timestamp("s"): st.integers(-(2**33), 2**33),
    pa.timestamp("ms"): LONG,
    pa.timestamp("us", "UTC"): LONG,
    pa.timestamp("ns"): LONG,
    pa.duration("ms"): st.integers(-(2**40), 2**40),
    pa.decimal128(12, 2): st.decimals(-(10**9), 10**9, places=2),
    pa.decimal128(38, 10): st.decimals(-(10**9), 10**9, places=4),
    pa.null(): st.none(),
    pa.dictionary(pa.int32(), pa.string()): TEXT,
}
PRIMITIVE_TYPES = st.sampled_from(list(PRIMITIVES))
NESTED_TYPES = st.recursive(
    st.sampled_from([kind for kind in PRIMITIVES if not pa.types.is_dictionary(kind) and "view" not in str(kind)]),
    lambda inner: (
        inner.map(pa.list_) | st.tuples(inner, inner).map(lambda two: pa.struct([("a", two[0]), ("b", two[1])]))
    ),
    max_leaves=3,
)
ARROW_TYPES = PRIMITIVE_TYPES | NESTED_TYPES


def arrow_values(kind: pa.DataType) -> st.SearchStrategy:
    """Values of an Arrow type, null included."""
    if pa.types.is_list(kind):
        return st.none() | st.lists(arrow_values(kind.value_type), max_size=3)
    if pa.types.is_struct(kind):
        return st.none() | st.fixed_dictionaries({f.name: arrow_values(f.type) for f in kind})
    return st.none() | PRIMITIVES[kind]


@st.composite
def parquet_file(draw, number: int, types: dict[str, pa.DataType], store_schema: bool = True):
    count = draw(st.integers(0, 12))
    columns = {KEY: pa.array([f"{number}-{n}" for n in range(count)], pa.string())}
    for name, kind in types.items():
        columns[name] = _array(draw(st.lists(arrow_values(kind), min_size=count, max_size=count)), kind)
    table = pa.table(columns)
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=draw(st.integers(1, 8)), store_schema=store_schema)
    stored = pq.read_table(io.BytesIO(sink.getvalue()))
    return InputFile(f"file{number}.parquet", sink.getvalue(), list(enumerate(_rows(stored))), stored.schema)


def _array(values: list[object], kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode()
    return pa.array(values, kind)


def _rows(table: pa.Table) -> list[Values]:
    from hfray.data.records import python_rows

    return list(python_rows(table))


# --- Tables ----------------------------------------------------------------------------------------------------


@st.composite
def cases(draw):
    shape = draw(st.sampled_from(["jsonl", "csv", "text", "parquet", "mixed types", "mixed formats"]))
    numbers = range(draw(st.integers(1, 3)))
    if shape == "jsonl":
        columns = {name: draw(JSON_COLUMNS) for name in draw(JSON_NAMES)}
        files = [draw(jsonl_file(n, columns)) for n in numbers]
    elif shape == "csv":
        names = draw(st.lists(st.sampled_from(["x", "ä b", "a,b", "y"]), max_size=3, unique=True))
        files = [draw(csv_file(n, names)) for n in numbers]
    elif shape == "text":
        files = [draw(text_file(n)) for n in numbers]
    elif shape == "parquet":
        types = {name: draw(ARROW_TYPES) for name in draw(st.lists(st.sampled_from("xyz"), max_size=3, unique=True))}
        store_schema = draw(st.booleans())
        files = [draw(parquet_file(n, types, store_schema)) for n in numbers]
    elif shape == "mixed types":
        files = [draw(parquet_file(n, {"x": draw(ARROW_TYPES)} if draw(st.booleans()) else {})) for n in numbers]
    else:
        text = {"x": pa.string()}
        makers = [csv_file(9, ["x"]), parquet_file(8, text), text_file(7), jsonl_file(6, {"x": TEXT})]
        files = [draw(maker) for maker in draw(st.lists(st.sampled_from(makers), min_size=1, unique=True))]
    limit = draw(st.none() | st.integers(1, 20))
    by_id = shape != "text" and draw(st.booleans())
    return Case(
        files=sorted(files, key=lambda file: file.name),
        columns=[KEY] if shape != "text" and draw(st.integers(0, 5)) == 0 else None,
        limit=limit,
        by_id=by_id,
        rows_per_block=draw(st.integers(1, 7)),
        slice_bytes=draw(st.sampled_from([1, 50, 1 << 26])),
        kills=draw(
            st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["between", "before", "after", "full"])), max_size=2)
        ),
        retry_errors=draw(st.booleans()),
        usable=not shape.startswith("mixed") and any(values for file in files for _, values in file.rows),
    )
