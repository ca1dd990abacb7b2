"""The filesystem of a local path or a cloud URL."""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs

from hfray.errors import SettingsError
from hfray.urls import URL, absolute


def open_filesystem(path: str, key: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a local path or a cloud URL, and the path in that filesystem.

    Cloud credentials come from the environment, as each cloud's own tools read them. For an S3-compatible store, set
    `AWS_ENDPOINT_URL`, or add `?endpoint_override=HOST:PORT&scheme=http` to the URL.

    Raises:
        SettingsError: an unknown scheme or option; the message names `key`.
    """
    match = URL.fullmatch(path)
    if match is None:
        return fs.LocalFileSystem(), absolute(path)
    if match["scheme"] == "file":
        return fs.LocalFileSystem(), unquote(match["path"])
    try:
        filesystem, root = _connect(match["scheme"], match["authority"], match["query"] or "")
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SettingsError(f"{key}={path}: cannot be opened ({error}). Check the address.") from error
    return filesystem, f"{root.rstrip('/')}/{unquote(match['path']).lstrip('/')}".rstrip("/")


@lru_cache(maxsize=64)
def _connect(scheme: str, authority: str, query: str) -> tuple[fs.FileSystem, str]:
    """Connect once per bucket and process: connecting may ask the cloud for the bucket's region."""
    return fs.FileSystem.from_uri(f"{scheme}://{authority}/{query}")
