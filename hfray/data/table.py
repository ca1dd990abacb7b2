"""A table as plain data: its files, their slices, the schema of its rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa

from hfray.config.batch import InputSettings
from hfray.data import jsontypes

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class Slice:
    """A run of rows of one file, for one read task. Positions count from 0: rows of Parquet and CSV, else lines."""

    uri: str
    name: str
    format: str
    rows: int
    first_position: int = 0
    offset: int = 0
    row_groups: tuple[int, ...] = ()


@dataclass(slots=True)
class Table:
    """What a look at every file found: the columns' types, the number of rows, and slices to read them by."""

    settings: InputSettings
    slices: list[Slice]
    schema: pa.Schema
    kinds: dict[str, jsontypes.Kind] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """Rows of the table, `input.limit` applied."""
        return sum(piece.rows for piece in self.slices)
