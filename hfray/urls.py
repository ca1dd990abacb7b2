"""Paths and cloud URLs as text: their parts, and the absolute form of a path."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

# `?endpoint_override=...&scheme=http` are options of the filesystem; a `?` without `name=` is part of a glob.
URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<authority>[^/?]*)(?P<path>.*?)(?P<query>\?\w+=.*)?", re.S)


def is_url(path: str) -> bool:
    """Whether this is a URL, not a path on this machine."""
    return "://" in path


def absolute(path: str) -> str:
    """A URL unchanged; a local path as an absolute path, with `~` expanded."""
    return path if is_url(path) else str(Path(path).expanduser().absolute())


def without_query(path: str) -> str:
    """The path or URL without the filesystem's options, so that it ends with the file's extension."""
    match = URL.fullmatch(path)
    return path.removesuffix(match["query"] or "") if match else path


def without_hash(source: str) -> str:
    """A model source without the `#sha256=HASH` of its wheel. The hash says where a model is from, not which it is."""
    return source.partition("#sha256=")[0] if source.startswith("pip:") else source


def file_address(root: str, file: str) -> str:
    """The address that `open_filesystem` takes for a file found below `root`.

    Args:
        root: the path or URL that was listed.
        file: the file's path inside the filesystem of `root`.
    """
    match = URL.fullmatch(root)
    if match is None or match["scheme"] == "file":
        return file
    inside = file if file.startswith("/") else "/" + file.partition("/")[2]  # the authority already names the bucket
    return f"{match['scheme']}://{match['authority']}{quote(inside)}{match['query'] or ''}"
