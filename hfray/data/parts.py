"""Opens the finished Parquet files of an output folder, and says clearly when a file is damaged or foreign."""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from hfray.data.output import OutputFolder
from hfray.data.records import OUTPUT_FIELDS
from hfray.errors import SettingsError

OWN_TYPES = {column.name: column.type for column in OUTPUT_FIELDS}


@contextlib.contextmanager
def open_part(
    output: OutputFolder, part: str, columns: Sequence[str] = (), key: str = "output.path"
) -> Iterator[pq.ParquetFile]:
    """A finished file, open as long as the context.

    Args:
        part: the file's path, as `OutputFolder.parts` gives it.
        columns: hfray's own columns that the caller reads.
        key: the setting that names the folder, for messages.

    Raises:
        SettingsError: the file cannot be read, now or later in the context, or lacks a column.
    """
    try:
        with output.filesystem.open_input_file(part) as file:
            parquet = pq.ParquetFile(file)
            _check_columns(parquet.schema_arrow, columns, f"{key}={output.path}: {part}")
            yield parquet
    except (pa.ArrowException, OSError) as error:
        raise SettingsError(
            f"{key}={output.path}: {part} cannot be read ({error}). If the file is damaged, delete it: the same command "
            "does its rows again."
        ) from error


def drop_failed_rows(output: OutputFolder, part: str) -> int:
    """Rewrite a finished file without its failed rows, so that a run does them again; returns their number."""
    with open_part(output, part, ["error"]) as parquet:
        table = parquet.read()
    good = table.filter(table["error"].is_null())
    if not good.num_rows:
        output.drop_part(posixpath.basename(part))
    elif good.num_rows < table.num_rows:
        sink = pa.BufferOutputStream()
        pq.write_table(good, sink, compression="zstd")
        output.put(posixpath.basename(part), sink.getvalue())
    return table.num_rows - good.num_rows


def _check_columns(schema: pa.Schema, columns: Sequence[str], what: str) -> None:
    wrong = [
        name for name in columns if name not in schema.names or not _fits(schema.field(name).type, OWN_TYPES[name])
    ]
    if wrong:
        raise SettingsError(
            f"{what} was not written by an hfray job: column {', '.join(wrong)} is missing or has another type. "
            "Name a folder that a job got as output.path."
        )


def _fits(found: pa.DataType, own: pa.DataType) -> bool:
    """Whether a column of this type reads like our own; other tools may have rewritten the file with wider types."""
    if pa.types.is_integer(own):
        return pa.types.is_integer(found)
    return pa.types.is_string(found) or pa.types.is_large_string(found)
