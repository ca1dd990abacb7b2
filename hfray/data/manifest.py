"""Size, modification time and a sample hash of every input file, to notice changes between runs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from pyarrow import fs

from hfray.data.files import is_compressed
from hfray.data.paths import open_filesystem
from hfray.data.table import Slice, Table
from hfray.errors import SettingsError

WINDOW_BYTES, WINDOWS = (
    16 << 10,
    16,
)  # hashed of each file: WINDOWS pieces, evenly spaced, with the first and the last bytes
THREADS = 16  # files read at once: most of the time is waiting for storage
GROWING = ("jsonl", "text")  # formats whose files may get more rows at the end without changing earlier rows


@dataclass(frozen=True, slots=True)
class FileStamp:
    """The state of one input file when a run read it.

    Attributes:
        size: in bytes.
        modified: modification time in nanoseconds since 1970; None where the storage does not know.
        sample: hash of WINDOWS pieces of the file.
        complete: whether the last line has its line end. Only such a file may grow: otherwise more bytes would
            change its last row.
    """

    size: int
    modified: int | None
    sample: str
    complete: bool


Manifest = Mapping[str, FileStamp]  # by the file's name in row ids


def take_stamps(table: Table, known: Manifest | None = None) -> dict[str, FileStamp]:
    """The stamps of a table's files, by name. A file with the size and time that `known` has is not read again."""
    known = known or {}
    files = list(_files(table).values())
    with ThreadPoolExecutor(THREADS) as threads:
        stamps = threads.map(lambda file: _stamp(file, known.get(file.name)), files)
        return {file.name: one for file, one in zip(files, stamps, strict=True)}


def check_unchanged(table: Table, before: Manifest) -> dict[str, FileStamp]:
    """Compare a table's files with the manifest of earlier runs; returns the manifest to keep.

    A row is known by its file's name and its position. So a file may only grow at its end (JSONL and text), and new
    files may join. With `input.id_column` a row is known by its id, and files may change freely.

    Raises:
        SettingsError: a file changed or is gone; the message names the file.
    """
    now = take_stamps(table, before)
    if table.settings.id_column is None:
        files = _files(table)
        for name, old in before.items():
            if name in now:
                if now[name] != old and not _has_grown(files[name], old):
                    raise SettingsError(_changed(table, name, old, now[name]))
            elif table.settings.limit is None:  # a limit may leave files out
                raise SettingsError(
                    f"input.path={table.settings.path}: the file {name!r} is gone, but the output folder holds its "
                    "rows. Restore the file, or name a new output.path."
                )
    return {**before, **now}


def to_json(manifest: Manifest) -> dict[str, object]:
    """Plain values for `_hfray/input.json`."""
    return {"files": {name: asdict(one) for name, one in manifest.items()}}


def from_json(values: Mapping[str, object]) -> dict[str, FileStamp]:
    """The manifest of what `to_json` gave. Raises ValueError if it is damaged."""
    files = values.get("files")
    if not isinstance(files, Mapping):
        raise ValueError("it has no mapping `files`")
    try:
        return {name: FileStamp(**one) for name, one in files.items()}
    except TypeError as error:
        raise ValueError(f"a file's entry is damaged: {error}") from error


def _files(table: Table) -> dict[str, Slice]:
    """One slice of each file, by the file's name."""
    return {piece.name: piece for piece in reversed(table.slices)}


def _changed(table: Table, name: str, old: FileStamp, now: FileStamp) -> str:
    sizes = f"{old.size:,} bytes then, {now.size:,} bytes now" if old.size != now.size else "other content"
    return (
        f"input.path={table.settings.path}: the file {name!r} changed since the first run of this output folder "
        f"({sizes}), so positions in the file no longer identify its rows. Restore the file, name a new output.path, "
        "start over with output.overwrite=true, or identify rows by a column with input.id_column."
    )


def _stamp(file: Slice, known: FileStamp | None) -> FileStamp:
    filesystem, path = open_filesystem(file.uri, "input.path")
    info = filesystem.get_file_info(path)
    modified = info.mtime_ns
    if known is not None and modified is not None and (info.size, modified) == (known.size, known.modified):
        return known
    sample, complete = _sample(filesystem, path, info.size)
    if known is not None and (info.size, sample) == (known.size, known.sample):
        return known  # a copy or a `touch` changes the time alone
    return FileStamp(info.size, modified, sample, complete)


def _has_grown(file: Slice, old: FileStamp) -> bool:
    """Whether the file still begins with its old content and only has more lines."""
    if file.format not in GROWING or is_compressed(file.uri) or not old.complete:
        return False
    filesystem, path = open_filesystem(file.uri, "input.path")
    return filesystem.get_file_info(path).size > old.size and _sample(filesystem, path, old.size)[0] == old.sample


def _sample(filesystem: fs.FileSystem, path: str, size: int) -> tuple[str, bool]:
    """Hash of pieces of the first `size` bytes, and whether these bytes end with a line end."""
    digest = hashlib.blake2b(digest_size=16)
    last = max(0, size - WINDOW_BYTES)
    starts = sorted({last * number // (WINDOWS - 1) for number in range(WINDOWS)})
    piece = b""
    with filesystem.open_input_file(path) as stream:
        for start in starts:
            piece = stream.read_at(min(WINDOW_BYTES, size - start), start)
            digest.update(piece)
    return digest.hexdigest(), size == 0 or piece.endswith(b"\n")
