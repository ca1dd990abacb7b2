"""Input files as bytes: their format and compression, and reading from an offset."""

from __future__ import annotations

import io
from pathlib import Path
from typing import cast

from hfray.data.paths import open_filesystem
from hfray.urls import without_query

FORMATS = {".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
FORMATS |= {".csv": "csv", ".txt": "text", ".text": "text"}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
SLICE_BYTES = 64 << 20  # of an input file: what one read task reads
BUFFER_BYTES = 1 << 20


def format_of(path: str) -> str | None:
    """The format that the file extension names, ignoring a compression extension; None if it names none."""
    suffixes = Path(path).suffixes
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes = suffixes[:-1]
    return FORMATS.get(suffixes[-1].lower()) if suffixes else None


def is_compressed(uri: str) -> bool:
    """Whether the file is compressed as a whole, so that it can only be read from its beginning."""
    return Path(without_query(uri)).suffix in COMPRESSIONS


def open_file(uri: str, offset: int = 0) -> io.BufferedReader:
    """The file's bytes from `offset`, decompressed according to the extension. `offset` is 0 for a compressed file."""
    filesystem, path = open_filesystem(uri, "input.path")
    if is_compressed(uri):
        compression = COMPRESSIONS[Path(path).suffix]
        stream = filesystem.open_input_stream(path, compression=compression, buffer_size=BUFFER_BYTES)
    else:
        stream = filesystem.open_input_file(path)
        stream.seek(offset)
    return io.BufferedReader(cast(io.RawIOBase, stream), BUFFER_BYTES)
