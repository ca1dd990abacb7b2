"""The file formats: how each one is scanned and read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from hfray.data import csv, lines, parquet
from hfray.data.files import format_of
from hfray.data.table import FileScan, Slice, Table
from hfray.errors import SettingsError
from hfray.urls import without_query


@dataclass(frozen=True, slots=True)
class Format:
    """A file format.

    Args:
        scan: takes a slice of the whole file with unknown rows; returns the slices and columns.
        read: takes the table, a slice and the number of rows per block; returns blocks of `read_schema`.
    """

    scan: Callable[[Slice], FileScan]
    read: Callable[[Table, Slice, int], Iterator[pa.Table]]


FORMATS = {
    "parquet": Format(parquet.scan, parquet.read),
    "jsonl": Format(lines.scan_jsonl, lines.read_jsonl),
    "csv": Format(csv.scan, csv.read),
    "text": Format(lines.scan_text, lines.read_text),
}


def scan_file(uri: str, name: str, given: str | None) -> FileScan:
    """Scan one file.

    Args:
        uri: path or URL.
        name: the beginning of its rows' ids.
        given: `input.format`; None infers the format from the file extension.

    Raises:
        SettingsError: the format is unknown, or the file cannot be read.
    """
    file_format = given or format_of(without_query(uri))
    if file_format is None:
        raise SettingsError(
            f"input.path={uri}: cannot infer the format from the file extension. "
            "Set input.format to parquet, jsonl, csv or text."
        )
    try:
        return FORMATS[file_format].scan(Slice(uri, name, file_format, 0))
    except (OSError, pa.ArrowException, EOFError) as error:
        raise SettingsError(f"input.path={uri}: cannot be read as {file_format} ({error}). Check the file.") from error


def read(table: Table, piece: Slice, rows_per_block: int) -> Iterator[pa.Table]:
    """The rows of a slice as blocks of `read_schema`. A row that cannot be read has an `error`."""
    yield from FORMATS[piece.format].read(table, piece, rows_per_block)
