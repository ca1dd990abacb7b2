"""The input table: which files, what columns, how many rows."""

from __future__ import annotations

import posixpath
from dataclasses import replace

import pyarrow as pa
from pyarrow import fs

from hfray.config.batch import InputSettings
from hfray.data import jsontypes
from hfray.data.paths import open_filesystem
from hfray.data.readers import format_of, read_slice, scan_file
from hfray.data.records import OUTPUT_COLUMNS
from hfray.data.table import Slice, Table
from hfray.errors import SettingsError
from hfray.urls import file_address


def scan(settings: InputSettings) -> Table:
    """Look at every file of the input.

    Raises:
        SettingsError: no such file, no rows, unreadable, columns that differ between files or collide with the
            output's, ids that are not unique; the message names key, value and remedy.
    """
    files = _list_files(settings)
    scanned = [scan_file(uri, name, settings.format) for uri, name in files]
    kinds: dict[str, jsontypes.Kind] = {}
    schema = pa.schema([])
    for (uri, _), (_, file_schema, file_kinds) in zip(files, scanned, strict=True):
        for key, kind in file_kinds.items():
            kinds[key] = jsontypes.merge(kinds.get(key, jsontypes.NULL), kind)
        schema = _unified(schema, file_schema, uri)
    if kinds:
        schema = pa.schema([pa.field(key, jsontypes.arrow_type(kind)) for key, kind in kinds.items()])
    slices = _limited([piece for pieces, _, _ in scanned for piece in pieces], settings.limit)
    if not slices:
        raise SettingsError(f"input.path={settings.path}: holds no rows. Name a file that has some.")
    table = Table(settings, slices, _chosen(schema, settings), kinds)
    _check_columns(table)
    if settings.id_column is not None:
        _check_ids(table)
    return table


# --- files -----------------------------------------------------------------------------------------------------


def _list_files(settings: InputSettings) -> list[tuple[str, str]]:
    """(path or URL, name for row ids) of every file once, sorted by name within each path given.

    Names are relative to the one path given. Of several they are whole addresses: files of one name in two folders stay
    apart, and a file that comes later changes nobody's name.
    """
    paths = [settings.path] if isinstance(settings.path, str) else settings.path
    found: dict[str, str] = {}
    for path in paths:
        filesystem, root = open_filesystem(path, "input.path")
        for file in _matching(filesystem, root, path):
            folder = _glob_root(root) if _is_glob(root) else root
            name = posixpath.relpath(file, folder) if file != root else posixpath.basename(file)
            address = file_address(path, file)
            found[address] = name if len(paths) == 1 else address
    return list(found.items())


def _matching(filesystem: fs.FileSystem, root: str, path: str) -> list[str]:
    try:
        if _is_glob(root):
            from fnmatch import fnmatch

            selector = fs.FileSelector(_glob_root(root), recursive=True)
            files = [f.path for f in filesystem.get_file_info(selector) if f.is_file and fnmatch(f.path, root)]
        else:
            info = filesystem.get_file_info(root)
            if info.type == fs.FileType.NotFound:
                raise FileNotFoundError("there is no such file or folder")
            if info.is_file:
                return [root]
            selector = fs.FileSelector(root, recursive=True)
            files = [f.path for f in filesystem.get_file_info(selector) if f.is_file]
            files = [f for f in files if format_of(f) and not _hidden(posixpath.relpath(f, root))]
    except (OSError, pa.ArrowInvalid) as error:
        raise SettingsError(f"input.path={path}: cannot be read ({error}). Check the path.") from error
    if not files:
        raise SettingsError(f"input.path={path}: no files there that can be read. Check the path, or set input.format.")
    return sorted(files)


def _is_glob(path: str) -> bool:
    return any(character in path for character in "*?[")


def _glob_root(path: str) -> str:
    head = path[: min(path.index(c) for c in "*?[" if c in path)]
    return posixpath.dirname(head)


def _hidden(relative: str) -> bool:
    return any(part.startswith(("_", ".")) for part in relative.split("/"))


# --- the columns -----------------------------------------------------------------------------------------------


def _unified(schema: pa.Schema, more: pa.Schema, uri: str) -> pa.Schema:
    try:
        return pa.unify_schemas([schema, more], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise SettingsError(
            f"input.path={uri}: its columns do not fit those of the files before it ({error}). "
            "Make the types agree, or run the files apart."
        ) from error


def _chosen(schema: pa.Schema, settings: InputSettings) -> pa.Schema:
    if settings.columns is None:
        return schema
    for name in settings.columns:
        if name not in schema.names:
            raise SettingsError(
                f"input.columns: {name!r} is no column of the input. Columns: {', '.join(schema.names)}."
            )
    return pa.schema([schema.field(name) for name in settings.columns])


def _check_columns(table: Table) -> None:
    for name in table.schema.names:
        if name in OUTPUT_COLUMNS:
            raise SettingsError(
                f"input.path={table.settings.path}: its column {name!r} has the name of an output column. "
                f"Rename it, or leave it out with input.columns=[{','.join(set(table.schema.names) - {name})}]."
            )
    column = table.settings.id_column
    if column is not None and column not in table.schema.names:
        raise SettingsError(
            f"input.id_column={column}: is no column of the input. Columns: {', '.join(table.schema.names)}."
        )


def _check_ids(table: Table) -> None:
    column, seen = table.settings.id_column, {}
    lean = Table(replace_columns(table.settings, [column]), table.slices, table.schema, table.kinds)
    lean.schema = pa.schema([table.schema.field(column)])
    for piece in table.slices:
        for block in read_slice(lean, piece, 65536):
            for row_id in block["row_id"].to_pylist():
                key = hash(row_id)  # 64 bits: a row's memory here; only equal hashes are looked at again
                if key in seen and _really_twice(lean, row_id):
                    raise SettingsError(
                        f"input.id_column={column}: the id {row_id!r} stands in the table more than once. "
                        "Name a column of unique ids, or leave input.id_column out to number rows by file and position."
                    )
                seen[key] = None


def _really_twice(table: Table, row_id: str) -> bool:
    import pyarrow.compute as pc

    blocks = (block for piece in table.slices for block in read_slice(table, piece, 65536))
    return sum(pc.sum(pc.equal(block["row_id"], row_id)).as_py() or 0 for block in blocks) > 1


def replace_columns(settings: InputSettings, columns: list[str]) -> InputSettings:
    """The same input, with only these columns read."""
    return replace(settings, columns=columns)


def _limited(slices: list[Slice], limit: int | None) -> list[Slice]:
    if limit is None:
        return slices
    kept = []
    for piece in slices:
        if limit <= 0:
            break
        kept.append(replace(piece, rows=min(piece.rows, limit)))
        limit -= piece.rows
    return kept
