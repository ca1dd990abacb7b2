"""Which files an input path means: a file, a folder, a glob pattern, or several of these."""

from __future__ import annotations

import os
import posixpath
import re

import pyarrow as pa
from pyarrow import fs

from hfray.config.batch import InputSettings
from hfray.data.files import format_of
from hfray.data.paths import open_filesystem
from hfray.errors import SettingsError
from hfray.urls import file_address

WILDCARDS = "*?["


def list_files(settings: InputSettings) -> list[tuple[str, str]]:
    """(path or URL, name for row ids) of every file, without duplicates, sorted by name within each given path.

    With one given path, names are relative to that path. With several paths, names are whole addresses: equal file
    names in two folders stay different, and an additional path changes no existing name.
    """
    paths = [settings.path] if isinstance(settings.path, str) else settings.path
    found: dict[str, str] = {}
    for path in paths:
        filesystem, root = open_filesystem(path, "input.path")
        folder, files = _matching(filesystem, root, path)
        for file in files:
            name = posixpath.relpath(file, folder) if file != root else posixpath.basename(file)
            _check_name(path, file)
            address = file_address(path, file)
            found[address] = name if len(paths) == 1 else address
    return list(found.items())


def _check_name(path: str, file: str) -> None:
    try:
        file.encode()
    except UnicodeEncodeError as error:
        raise SettingsError(f"input.path={path}: the file name {file!r} is not UTF-8. Rename the file.") from error


def _matching(filesystem: fs.FileSystem, root: str, path: str) -> tuple[str, list[str]]:
    """The folder that names are relative to, and the files that a path means. A literal file name beats a pattern."""
    try:
        info = filesystem.get_file_info(root)
        if info.type == fs.FileType.NotFound and any(character in root for character in WILDCARDS):
            head, tail = split_pattern(root)
            pattern = pattern_of(root)
            files = [file for file in _walk(filesystem, head, recursive="/" in tail) if pattern.fullmatch(file)]
            root = head
        elif info.type == fs.FileType.NotFound:
            raise FileNotFoundError("there is no such file or folder")
        elif info.is_file:
            return root, [root]
        else:
            files = _walk(filesystem, root, recursive=True)
            files = [file for file in files if format_of(file) and not _hidden(posixpath.relpath(file, root))]
    except (OSError, UnicodeError, pa.ArrowInvalid) as error:
        raise SettingsError(f"input.path={path}: cannot be read ({error}). Check the path.") from error
    if not files:
        raise SettingsError(
            f"input.path={path}: there are no files with a known extension. Check the path, or set input.format."
        )
    return root, sorted(files)


def _walk(filesystem: fs.FileSystem, folder: str, recursive: bool) -> list[str]:
    """The files of a folder. On a local disk, a symlink to one of its own parent folders is not followed."""
    if not isinstance(filesystem, fs.LocalFileSystem):
        selector = fs.FileSelector(folder, recursive=recursive)
        return [info.path for info in filesystem.get_file_info(selector) if info.is_file]
    found: list[str] = []

    def enter(place: str, parents: frozenset[str]) -> None:
        real = os.path.realpath(place)
        if real in parents:
            return
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.is_file():
                    found.append(posixpath.join(place, entry.name))
                elif recursive and entry.is_dir():
                    enter(posixpath.join(place, entry.name), parents | {real})

    enter(folder or ".", frozenset())
    return found


def split_pattern(pattern: str) -> tuple[str, str]:
    """A glob pattern as the folder before its first wildcard, and the rest."""
    first = min(pattern.index(character) for character in WILDCARDS if character in pattern)
    head = posixpath.dirname(pattern[:first])
    return head, pattern[len(head) :].lstrip("/")


def pattern_of(glob: str) -> re.Pattern[str]:
    """A glob as a regular expression, with the shell's rules.

    `*`, `?` and `[...]` match no slash, `**` matches any number of folders, and no wildcard matches a name that starts
    with "." or "_" (hidden and temporary files, `.ipynb_checkpoints`).
    """
    parts = glob.split("/")
    pieces = []
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if part == "**":
            pieces.append(r"(?:[^/._][^/]*/)*" + (r"[^/._][^/]*" if last else ""))
        else:
            guard = "(?![._])" if part[:1] in WILDCARDS and part else ""
            pieces.append(guard + _segment(part) + ("" if last else "/"))
    return re.compile("".join(pieces), re.DOTALL)


def _segment(part: str) -> str:
    """One path segment of a glob as a regular expression."""
    tokens = re.findall(r"\[!?\]?[^\]]*\]|.", part, re.DOTALL)
    return "".join(_glob_token(token) for token in tokens)


def _glob_token(piece: str) -> str:
    if piece == "?":
        return "[^/]"
    if piece == "*":
        return "[^/]*"
    if len(piece) > 1:
        negated = piece[1] == "!"
        inside = (
            piece[1 + negated : -1].replace("\\", r"\\").replace("[", r"\[").replace("]", r"\]").replace("^", r"\^")
        )
        return f"(?!/)[{'^' if negated else ''}{inside}]"
    return re.escape(piece)


def _hidden(relative: str) -> bool:
    return any(part.startswith(("_", ".")) for part in relative.split("/"))
