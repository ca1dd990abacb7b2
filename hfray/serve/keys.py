"""The API keys that clients must send."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

from hfray.config.serve import ServerSettings
from hfray.errors import SettingsError

REFRESH_SECONDS = 10.0  # how often a key file is checked for changes


class ApiKeys:
    """SHA-256 digests of the API keys; the keys themselves are not kept. Falsy if there are no keys.

    A changed key file is read again within REFRESH_SECONDS. On a cluster the file must be at the same path on every
    node for that; a replica on a node without the file keeps the keys that the service started with.
    """

    def __init__(self, digests: Sequence[bytes] = (), file: Path | None = None) -> None:
        self._digests, self._file = tuple(digests), file
        self._checked, self._version = time.monotonic(), None  # so that the first check reads the file again

    @classmethod
    def read(cls, settings: ServerSettings) -> ApiKeys:
        """The keys that `serve.api_keys` points to; no keys if it is null.

        Raises:
            SettingsError: the variable or file does not exist, or it contains no key.
        """
        if settings.api_keys is None:
            return cls()
        kind, _, where = settings.api_keys.partition(":")
        return cls(_digests(settings.api_keys), Path(where).expanduser().absolute() if kind == "file" else None)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accepts(self, authorization: bytes) -> bool:
        """Whether an Authorization header carries one of the keys."""
        self._refresh()
        scheme, _, token = authorization.partition(b" ")
        digest = hashlib.sha256(token.strip()).digest()
        # Every key is compared, so that the duration reveals nothing.
        matches = sum([hmac.compare_digest(digest, known) for known in self._digests])
        return scheme.lower() == b"bearer" and matches > 0

    def _refresh(self) -> None:
        """Read the key file again if it has changed; keep the old keys if the new file cannot be used."""
        if self._file is None or time.monotonic() - self._checked < REFRESH_SECONDS:
            return
        self._checked, version = time.monotonic(), _version(self._file)
        if version is None or version == self._version:
            return
        try:
            self._digests = tuple(_digests(f"file:{self._file}"))
        except SettingsError as error:
            logging.getLogger("ray.serve").warning("the old API keys stay valid: %s", error)
        self._version = version


def _version(file: Path | None) -> tuple[int, int, int] | None:
    """What changes when a file is replaced or rewritten; None if there is no file."""
    try:
        found = file.stat() if file is not None else None
    except OSError:
        return None
    return None if found is None else (found.st_mtime_ns, found.st_size, found.st_ino)


def _digests(source: str) -> list[bytes]:
    kind, _, where = source.partition(":")
    try:
        text = os.environ[where] if kind == "env" else Path(where).expanduser().read_text()
    except (KeyError, OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"serve.api_keys={source}: cannot be read ({type(error).__name__}). Set the environment variable, or name "
            "a readable file. It must contain one or more keys, separated by commas or line ends."
        ) from error
    keys = [key for key in (part.strip() for part in text.replace(",", "\n").splitlines()) if key]
    if not keys:
        raise SettingsError(f"serve.api_keys={source}: contains no key. Add a key, or set serve.api_keys=null.")
    return [hashlib.sha256(key.encode()).digest() for key in keys]
