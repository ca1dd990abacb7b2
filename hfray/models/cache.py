"""The cache of prepared models."""

from __future__ import annotations

import os
import re
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from hfray.errors import SettingsError


def cache_folder() -> Path:
    """The folder that stores prepared models: `HFRAY_CACHE`, or `hfray` in the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("HFRAY_CACHE") or Path(base) / "hfray").expanduser().absolute()


def cached(kind: str, name: str, make: Callable[[Path], None]) -> Path:
    """The cache entry `kind`/`name`. If it does not exist, `make(folder)` creates it; a failed `make` leaves nothing.

    If several nodes share the cache, one of them makes the entry and the others wait. The file `name.made` gets a line
    per creation: node, process id, seconds.
    """
    entry = cache_folder() / kind / re.sub(r"[^\w.=+-]+", "_", name)
    if entry.exists():
        return entry
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{entry}.lock"):
            if not entry.exists():
                _make(entry, make)
    except OSError as error:
        raise SettingsError(
            f"HFRAY_CACHE={cache_folder()}: cannot store the model there ({error}). "
            "Set HFRAY_CACHE to a writable folder with enough free space."
        ) from error
    return entry


def _make(entry: Path, make: Callable[[Path], None]) -> None:
    """Make the entry in a temporary folder and rename it, so that the entry is complete or absent."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=entry.parent, prefix=".making-") as temporary:
        folder = Path(temporary) / "entry"
        folder.mkdir()
        make(folder)
        folder.rename(entry)
    with open(f"{entry}.made", "a") as log:
        log.write(f"{socket.gethostname()} {os.getpid()} {time.monotonic() - started:.1f} s\n")
