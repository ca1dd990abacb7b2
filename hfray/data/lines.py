"""JSONL and text files: one row per line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import orjson
import pyarrow as pa

from hfray.data import files, jsontypes
from hfray.data.blocks import BlockBuilder
from hfray.data.jsontypes import JsonValue
from hfray.data.table import FileScan, Slice, Table

TEXT_COLUMN = "text"
BOM = b"\xef\xbb\xbf"
MAX_DEPTH = 500  # of nested lists and objects in a row; Python's json functions fail at about 1000
LONG_NUMBER = re.compile(rb"\d{19}")  # orjson would turn integers beyond 64 bits into floats


def scan_jsonl(whole: Slice) -> FileScan:
    """Slices, and the kinds of all columns."""
    columns = jsontypes.Columns()

    def look(line: bytes) -> None:
        row, _ = parse_json(line)
        if row is not None:
            columns.add(row)

    return FileScan(_slices(whole, look), kinds=columns.kinds)


def scan_text(whole: Slice) -> FileScan:
    """Slices, and the one column `text`."""
    return FileScan(_slices(whole, None), pa.schema([pa.field(TEXT_COLUMN, pa.string())]))


def _slices(whole: Slice, look: Callable[[bytes], None] | None) -> list[Slice]:
    """Cut a file of lines into slices of about SLICE_BYTES. A blank line of a JSONL file is not a row.

    A compressed file is one slice, because it can only be read from its beginning.
    """
    skip_blank = whole.format == "jsonl"
    can_seek = not files.is_compressed(whole.uri)
    slices: list[Slice] = []
    rows, first, start, offset, position = 0, 0, 0, 0, 0

    def piece() -> Slice:
        size = (offset - start) // max(1, rows)
        return replace(whole, rows=rows, first_position=first, offset=start, row_bytes=size)

    with files.open_file(whole.uri) as file:
        for line in file:
            if can_seek and offset - start >= files.SLICE_BYTES:
                slices.append(piece())
                rows, first, start = 0, position, offset
            offset += len(line)
            position += 1
            if skip_blank and not line.strip():
                continue
            rows += 1
            if look is not None:
                look(line)
    slices.append(piece())
    return [piece for piece in slices if piece.rows]


def read_jsonl(table: Table, piece: Slice, rows_per_block: int) -> Iterator[pa.Table]:
    """The slice's rows; a line that is not a JSON object is a row with an error."""
    names = table.schema.names

    def parse(line: bytes) -> tuple[Sequence[JsonValue], str | None]:
        row, error = parse_json(line)
        return [None] * len(names) if row is None else [row.get(name) for name in names], error

    return _read(table, piece, rows_per_block, parse)


def read_text(table: Table, piece: Slice, rows_per_block: int) -> Iterator[pa.Table]:
    """The slice's rows; a line that is not UTF-8 is a row with an error."""

    def parse(line: bytes) -> tuple[Sequence[JsonValue], str | None]:
        try:
            text = line.decode().rstrip("\r\n")
            return [text if name == TEXT_COLUMN else None for name in table.schema.names], None
        except UnicodeDecodeError as error:
            return [None] * len(table.schema), f"is not UTF-8 ({error.reason})"

    return _read(table, piece, rows_per_block, parse)


def _read(
    table: Table,
    piece: Slice,
    rows_per_block: int,
    parse: Callable[[bytes], tuple[Sequence[JsonValue], str | None]],
) -> Iterator[pa.Table]:
    builder, left = BlockBuilder(table, piece, rows_per_block), piece.rows
    with files.open_file(piece.uri, piece.offset) as file:
        for position, line in enumerate(file, piece.first_position):
            if left <= 0:
                break
            if piece.format == "jsonl" and not line.strip():
                continue
            left -= 1
            values, error = parse(line.removeprefix(BOM) if position == 0 else line)
            if block := builder.add(position, position + 1, values, error):
                yield block
    yield from builder.rest()


def parse_json(line: bytes) -> tuple[dict[str, JsonValue] | None, str | None]:
    """The object in a JSONL line, or the reason why the line has none."""
    line = line.removeprefix(BOM)
    if line.count(b"[") + line.count(b"{") > MAX_DEPTH and _depth(line) > MAX_DEPTH:
        return None, f"is nested more than {MAX_DEPTH} levels deep"
    try:
        row = _strict_json(line) if LONG_NUMBER.search(line) else orjson.loads(line)
    except ValueError:
        try:
            row = _strict_json(line)  # accepts NaN and Infinity
        except UnicodeEncodeError:
            return None, "contains half of a surrogate pair (a truncated emoji?)"
        except (ValueError, RecursionError) as error:
            return None, f"is not JSON ({str(error).split(':')[0]})"
    if not isinstance(row, dict):
        return None, f"is a JSON {type(row).__name__}, not an object"
    return row, None


def _strict_json(line: bytes) -> JsonValue:
    """The line's value with exact integers. Raises UnicodeEncodeError if a string cannot be written as UTF-8."""
    value = json.loads(line)
    if b"\\u" in line:
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _depth(line: bytes) -> int:
    """How many lists and objects are nested in the line; brackets inside strings do not count."""
    depth = deepest = 0
    for token in re.finditer(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', line):
        if token[0] in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif token[0] in b"]}":
            depth -= 1
    return deepest
