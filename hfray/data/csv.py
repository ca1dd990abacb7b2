"""CSV files with a header line. All values are text."""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TextIO

import pyarrow as pa

from hfray.data.blocks import BlockBuilder
from hfray.data.files import open_file
from hfray.data.table import FileScan, Slice, Table
from hfray.errors import SettingsError

MAX_RECORD_CHARACTERS = 64 << 20
csv.field_size_limit(MAX_RECORD_CHARACTERS)


@dataclass(slots=True)
class Record:
    """A record: the number of its first line (from 1), and its fields or what is wrong with it."""

    line: int
    fields: list[str]
    error: str | None = None


def scan(whole: Slice) -> FileScan:
    """One slice, and the header's columns. Raises SettingsError if the header cannot be used."""
    with _text(whole.uri) as file:
        rows = records(file)
        header = next(rows, None)
        if header is None:
            return FileScan([])
        _check_header(header, whole.uri)
        count = characters = 0
        for row in rows:
            count += 1
            characters += sum(map(len, row.fields))
    schema = pa.schema([pa.field(name, pa.string()) for name in header.fields])
    return FileScan([replace(whole, rows=count, row_bytes=characters // max(1, count))] if count else [], schema)


def _check_header(header: Record, uri: str) -> None:
    if header.error is not None:
        raise SettingsError(f"input.path={uri}: the header line {header.error}. Correct the line.")
    if not all(_is_text(name) for name in header.fields):
        raise SettingsError(
            f"input.path={uri}: the header line is not UTF-8. Convert the file, for example with "
            "`iconv -f ISO-8859-1 -t UTF-8` or `iconv -f UTF-16 -t UTF-8`."
        )
    twice = next((name for name in header.fields if header.fields.count(name) > 1), None)
    if twice is not None:
        raise SettingsError(f"input.path={uri}: the header contains the column {twice!r} twice. Rename one of them.")


def read(table: Table, piece: Slice, rows_per_block: int) -> Iterator[pa.Table]:
    """The slice's rows; a record with an error or with another number of fields is a row with an error."""
    builder = BlockBuilder(table, piece, rows_per_block)
    with _text(piece.uri) as file:
        rows = records(file)
        header = next(rows, Record(0, [])).fields
        wanted = [header.index(name) if name in header else None for name in table.schema.names]
        for position, record in zip(range(piece.rows), rows, strict=False):
            error = _error(record, header)
            values = [None if error or i is None else record.fields[i] for i in wanted]
            if block := builder.add(position, record.line, values, error):
                yield block
    yield from builder.rest()


def _error(record: Record, header: list[str]) -> str | None:
    if record.error is not None:
        return record.error
    if len(record.fields) != len(header):
        return f"has {len(record.fields)} fields, and the header has {len(header)}"
    return None if all(map(_is_text, record.fields)) else "is not UTF-8"


def _is_text(value: str) -> bool:
    """Whether the value was UTF-8 in the file (see `_text`)."""
    return value.isascii() or not any("\udc80" <= c <= "\udcff" for c in value)


def _text(uri: str) -> TextIO:
    """The file as text. Bytes that are not UTF-8 become surrogates, so that only their rows get an error."""
    return io.TextIOWrapper(open_file(uri), encoding="utf-8-sig", errors="surrogateescape", newline="")


def records(file: TextIO) -> Iterator[Record]:
    """The records of a CSV file, without blank lines.

    A line with a quote that never closes is one record with an error. The following lines are parsed on their own.
    """
    pushed_back: deque[str] = deque()
    taken: list[str] = []

    def lines() -> Iterator[str]:
        size = 0
        while line := pushed_back.popleft() if pushed_back else file.readline():
            taken.append(line)
            size += len(line)
            if size > MAX_RECORD_CHARACTERS and len(taken) > 1:
                raise csv.Error("the record is too large")
            yield line

    number = 1
    while True:
        taken.clear()
        try:
            record = Record(number, next(csv.reader(lines(), strict=True), []))
        except csv.Error as error:
            if len(taken) > 1 or "unexpected end" in str(error):
                record = Record(number, [], "opens a quote that never closes")
            else:
                record = _lenient(number, taken[0])
            pushed_back.extendleft(reversed(taken[1:]))
            del taken[1:]
        if not taken:
            return
        number += len(taken)
        if record.fields or record.error:
            yield record


def _lenient(number: int, line: str) -> Record:
    """A record with characters around a quoted field, which Python's lenient mode keeps."""
    try:
        return Record(number, next(csv.reader([line])))
    except csv.Error as error:
        return Record(number, [], f"cannot be parsed as CSV ({error})")
