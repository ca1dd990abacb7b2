"""A table as plain data: its files, the slices to read, and the schema of its rows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pyarrow as pa

from hfray.config.batch import InputSettings
from hfray.data import jsontypes


@dataclass(frozen=True, slots=True)
class Slice:
    """A range of rows of one file, read by one task.

    Positions count from 0. A position is a row number in Parquet and CSV files, and a line number in other files.
    """

    uri: str
    name: str
    format: str
    rows: int
    first_position: int = 0
    offset: int = 0
    row_groups: tuple[int, ...] = ()
    row_bytes: int = 0  # mean size of a row


@dataclass(slots=True)
class FileScan:
    """The result of scanning one file: its slices and columns. JSONL columns have kinds, other columns a schema."""

    slices: list[Slice]
    schema: pa.Schema = field(default_factory=lambda: pa.schema([]))
    kinds: dict[str, jsontypes.Kind] = field(default_factory=dict)


@dataclass(slots=True)
class Table:
    """The result of scanning all files: the columns' types and the slices to read."""

    settings: InputSettings
    slices: list[Slice]
    schema: pa.Schema
    kinds: dict[str, jsontypes.Kind] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """The number of rows, after `input.limit`."""
        return sum(piece.rows for piece in self.slices)

    def with_columns(self, columns: list[str]) -> Table:
        """The same rows with these columns alone."""
        schema = pa.schema([self.schema.field(name) for name in columns])
        return Table(replace(self.settings, columns=columns), self.slices, schema, self.kinds)
