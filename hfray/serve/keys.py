"""The API keys that clients must send."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Sequence
from pathlib import Path

from hfray.config.serve import ServerSettings
from hfray.errors import SettingsError


class ApiKeys:
    """SHA-256 digests of the API keys; the keys themselves are not kept. Falsy if there are no keys."""

    def __init__(self, digests: Sequence[bytes] = ()) -> None:
        self._digests = tuple(digests)

    @classmethod
    def read(cls, settings: ServerSettings) -> ApiKeys:
        """The keys that `serve.api_keys` points to; no keys if it is null.

        Raises:
            SettingsError: the variable or file does not exist, or it contains no key.
        """
        return cls() if settings.api_keys is None else cls(_digests(settings.api_keys))

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accepts(self, authorization: bytes) -> bool:
        """Whether an Authorization header carries one of the keys."""
        scheme, _, token = authorization.partition(b" ")
        digest = hashlib.sha256(token.strip()).digest()
        # Every key is compared, so that the duration reveals nothing.
        matches = sum([hmac.compare_digest(digest, known) for known in self._digests])
        return scheme.lower() == b"bearer" and matches > 0


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
