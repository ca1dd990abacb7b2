"""Files of records: a first look at each (slices, columns), and its rows, block by block."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from hfray.data import jsontypes
from hfray.data.paths import open_filesystem
from hfray.data.records import read_schema
from hfray.data.table import Slice
from hfray.errors import SettingsError
from hfray.urls import without_query

if TYPE_CHECKING:
    from hfray.data.table import Table


FORMATS = {".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
FORMATS |= {".csv": "csv", ".txt": "text", ".text": "text"}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
SLICE_BYTES = 64 << 20  # of a JSONL or text file: what one read task reads
csv.field_size_limit(1 << 30)


def format_of(path: str) -> str | None:
    """The format that a file's ending tells, compression aside, or None."""
    suffixes = Path(path).suffixes
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes = suffixes[:-1]
    return FORMATS.get(suffixes[-1].lower()) if suffixes else None


def _open(uri: str) -> BinaryIO:
    """The file's bytes, decompressed by its ending."""
    filesystem, path = open_filesystem(uri, "input.path")
    compression = COMPRESSIONS.get(Path(path).suffix)
    stream = filesystem.open_input_stream(path, compression=compression, buffer_size=1 << 20)
    return io.BufferedReader(stream, 1 << 20)


# --- the first look at a file ----------------------------------------------------------------------------------


def scan_file(uri: str, name: str, given: str | None) -> tuple[list[Slice], pa.Schema, dict]:
    """A first look at one file: slices, columns, and for JSONL the columns' kinds. Raises SettingsError.

    Args:
        uri: path or URL. name: what its row ids begin with. given: `input.format`, or None to go by the ending.
    """
    file_format = given or format_of(without_query(uri))
    if file_format is None:
        raise SettingsError(
            f"input.path={uri}: its ending tells no format. Set input.format to parquet, jsonl, csv or text."
        )
    whole = Slice(uri, name, file_format, 0)
    try:
        return {"parquet": _scan_parquet, "jsonl": _scan_jsonl, "csv": _scan_csv, "text": _scan_text}[file_format](
            whole
        )
    except (OSError, pa.ArrowInvalid, EOFError) as error:
        raise SettingsError(f"input.path={uri}: cannot be read as {file_format} ({error}).") from error


def _scan_parquet(whole: Slice) -> tuple[list[Slice], pa.Schema, dict]:
    filesystem, path = open_filesystem(whole.uri, "input.path")
    with filesystem.open_input_file(path) as file:
        parquet = pq.ParquetFile(file)
        slices, position, pending, size = [], 0, [], 0
        for group in range(parquet.num_row_groups):
            pending.append(group)
            size += parquet.metadata.row_group(group).total_byte_size
            if size >= SLICE_BYTES or group == parquet.num_row_groups - 1:
                rows = sum(parquet.metadata.row_group(g).num_rows for g in pending)
                slices.append(replace(whole, rows=rows, first_position=position, row_groups=tuple(pending)))
                position, pending, size = position + rows, [], 0
        return [piece for piece in slices if piece.rows], parquet.schema_arrow.remove_metadata(), {}


def _scan_jsonl(whole: Slice) -> tuple[list[Slice], pa.Schema, dict]:
    columns = jsontypes.Columns()

    def look(line: bytes) -> None:
        row, error = _parse_json(line)
        if error is None:
            columns.add(row)

    return _scan_lines(whole, look), pa.schema([]), columns.result()


def _scan_text(whole: Slice) -> tuple[list[Slice], pa.Schema, dict]:
    return _scan_lines(whole, None), pa.schema([pa.field("text", pa.string())]), {}


def _scan_lines(whole: Slice, look: Any) -> list[Slice]:
    """Cut a file of lines into slices; lines that are blank are no rows of a JSONL file."""
    skip_blank = whole.format == "jsonl"
    can_seek = Path(without_query(whole.uri)).suffix not in COMPRESSIONS
    slices, rows, first, start, offset, position = [], 0, 0, 0, 0, 0
    with _open(whole.uri) as file:
        for line in file:
            if can_seek and offset - start >= SLICE_BYTES:
                slices.append(replace(whole, rows=rows, first_position=first, offset=start))
                rows, first, start = 0, position, offset
            offset += len(line)
            position += 1
            if skip_blank and not line.strip():
                continue
            rows += 1
            if look is not None:
                look(line)
    slices.append(replace(whole, rows=rows, first_position=first, offset=start))
    return [piece for piece in slices if piece.rows]


def _scan_csv(whole: Slice) -> tuple[list[Slice], pa.Schema, dict]:
    with _csv_rows(whole.uri) as rows:
        header = next(rows.reader, None)
        if not header:
            return [], pa.schema([]), {}
        if len(set(header)) < len(header):
            twice = next(name for name in header if header.count(name) > 1)
            raise SettingsError(f"input.path={whole.uri}: column {twice!r} stands in the header twice. Rename one.")
        count = sum(1 for row in rows.reader if row)
    schema = pa.schema([pa.field(name, pa.string()) for name in header])
    return [replace(whole, rows=count)] if count else [], schema, {}


class _csv_rows:
    """csv.reader over a file; bytes that are no UTF-8 come out as surrogates, to be found row by row."""

    def __init__(self, uri: str) -> None:
        self._file = io.TextIOWrapper(_open(uri), encoding="utf-8-sig", errors="surrogateescape", newline="")
        self.reader = csv.reader(self._file)

    def __enter__(self) -> _csv_rows:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


# --- rows ------------------------------------------------------------------------------------------------------


def _read_parquet(table: Table, piece: Slice, rows_per_block: int) -> Iterator[pa.Table]:
    filesystem, path = open_filesystem(piece.uri, "input.path")
    position, left = piece.first_position, piece.rows
    with filesystem.open_input_file(path) as file:
        parquet = pq.ParquetFile(file, pre_buffer=True)
        here = [name for name in table.schema.names if name in parquet.schema_arrow.names]
        for batch in parquet.iter_batches(rows_per_block, row_groups=list(piece.row_groups), columns=here):
            batch = batch.slice(0, min(left, batch.num_rows))
            arrays = []
            for column in table.schema:
                found = column.name in here
                arrays.append(batch[column.name].cast(column.type) if found else pa.nulls(batch.num_rows, column.type))
            block = pa.Table.from_arrays(arrays, schema=table.schema)
            yield _with_ids(table, piece, block, range(position, position + block.num_rows), [None] * block.num_rows)
            position, left = position + batch.num_rows, left - batch.num_rows
            if left <= 0:
                return


def _read_jsonl(table: Table, piece: Slice, rows_per_block: int) -> Iterator[pa.Table]:
    def parse(line: bytes, position: int) -> tuple[list, str | None]:
        row, error = _parse_json(line)
        if error is not None:
            return [None] * len(table.schema), f"{piece.name}, line {position + 1}: {error}"
        return [row.get(name) for name in table.schema.names], None

    yield from _read_lines(table, piece, rows_per_block, parse)


def _read_text(table: Table, piece: Slice, rows_per_block: int) -> Iterator[pa.Table]:
    def parse(line: bytes, position: int) -> tuple[list, str | None]:
        try:
            text = (line[3:] if position == 0 and line.startswith(b"\xef\xbb\xbf") else line).decode()
        except UnicodeDecodeError as error:
            return [None], f"{piece.name}, line {position + 1}: is not UTF-8 ({error.reason})"
        return [text.rstrip("\r\n")], None

    yield from _read_lines(table, piece, rows_per_block, parse)


def _read_lines(table: Table, piece: Slice, rows_per_block: int, parse: Any) -> Iterator[pa.Table]:
    gather, left = _Gather(table, piece, rows_per_block), piece.rows
    filesystem_file = _open(piece.uri)
    with filesystem_file as file:
        if piece.offset:
            file.raw.seek(piece.offset) if file.raw.seekable() else file.read(piece.offset)
        for position, line in enumerate(file, piece.first_position):
            if left <= 0:
                break
            if piece.format == "jsonl" and not line.strip():
                continue
            left -= 1
            if block := gather.add(position, *parse(line, position)):
                yield block
    yield from gather.rest()


def _read_csv(table: Table, piece: Slice, rows_per_block: int) -> Iterator[pa.Table]:
    gather, left = _Gather(table, piece, rows_per_block), piece.rows
    with _csv_rows(piece.uri) as rows:
        header = next(rows.reader)
        wanted = [header.index(name) if name in header else None for name in table.schema.names]
        records = (row for row in rows.reader if row)
        for position, row in enumerate(records):
            if left <= 0:
                break
            left -= 1
            error = _csv_error(piece, rows.reader.line_num, row, header)
            values = [None if error or i is None else row[i] for i in wanted]
            if block := gather.add(position, values, error):
                yield block
    yield from gather.rest()


def _csv_error(piece: Slice, line: int, row: list[str], header: list[str]) -> str | None:
    if len(row) != len(header):
        return f"{piece.name}, line {line}: has {len(row)} fields, and the header has {len(header)}"
    if any(not value.isascii() and any("\udc80" <= c <= "\udcff" for c in value) for value in row):
        return f"{piece.name}, line {line}: is not UTF-8"
    return None


class _Gather:
    """Rows gathered to blocks of one size."""

    def __init__(self, table: Table, piece: Slice, rows_per_block: int) -> None:
        self._table, self._piece, self._size = table, piece, rows_per_block
        self._rows: list[tuple[int, list, str | None]] = []

    def add(self, position: int, values: list, error: str | None) -> pa.Table | None:
        self._rows.append((position, values, error))
        return self._block() if len(self._rows) >= self._size else None

    def rest(self) -> Iterator[pa.Table]:
        if self._rows:
            yield self._block()

    def _block(self) -> pa.Table:
        positions, values, errors = zip(*self._rows, strict=True)
        self._rows = []
        columns = zip(*values, strict=True) if self._table.schema.names else ()
        arrays = [
            jsontypes.to_array(list(column), self._table.kinds.get(f.name, jsontypes.STRING))
            for f, column in zip(self._table.schema, columns, strict=True)
        ]
        block = pa.Table.from_arrays(arrays, schema=self._table.schema)
        return _with_ids(self._table, self._piece, block, positions, list(errors))


def _with_ids(table: Table, piece: Slice, block: pa.Table, positions: Any, errors: list[str | None]) -> pa.Table:
    """Add `row_id` and `error`: the id column's value, or, where there is none, file name and position."""
    ids = [f"{piece.name}:{position}" for position in positions]
    if table.settings.id_column is not None:
        given = block[table.settings.id_column].to_pylist()
        ids = [own if value is None else str(value) for own, value in zip(ids, given, strict=True)]
    arrays = [*block.columns, pa.array(ids, pa.string()), pa.array(errors, pa.string())]
    return pa.Table.from_arrays(arrays, schema=read_schema(table.schema))


def _parse_json(line: bytes) -> tuple[dict[str, Any] | None, str | None]:
    """A JSONL line's object, or what is wrong with it."""
    line = line.removeprefix(b"\xef\xbb\xbf")
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        try:
            row = json.loads(line)  # NaN and Infinity, which orjson refuses
        except ValueError:
            return None, f"is not JSON ({str(error).split(':')[0]})"
    if not isinstance(row, dict):
        return None, f"is a JSON {type(row).__name__}, not an object"
    return row, None


READERS = {"parquet": _read_parquet, "jsonl": _read_jsonl, "csv": _read_csv, "text": _read_text}


def read_slice(table: Table, piece: Slice, rows_per_block: int) -> Iterator[pa.Table]:
    """The rows of a slice as blocks of `read_schema`; a line that cannot be read is a row with an `error`."""
    yield from READERS[piece.format](table, piece, rows_per_block)
