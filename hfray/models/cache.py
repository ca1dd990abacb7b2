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
    """Where models are kept: `HFRAY_CACHE`, else `hfray` under the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("HFRAY_CACHE") or Path(base) / "hfray").expanduser().absolute()


def cached(kind: str, name: str, make: Callable[[Path], None]) -> Path:
    """The cache entry `kind`/`name`, made by `make(folder)` if it is not there; whole or absent, never half.

    Where nodes share the cache, one makes it and the others wait; `name.made` has a line for each making: node, process
    and seconds.
    """
    entry = cache_folder() / kind / re.sub(r"[^\w.=+-]+", "_", name)
    if entry.exists():
        return entry
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{entry}.lock"):
            if not entry.exists():
                with tempfile.TemporaryDirectory(dir=entry.parent, prefix=".making-") as aside:
                    folder = Path(aside) / "entry"
                    folder.mkdir()
                    started = time.monotonic()
                    make(folder)
                    folder.rename(entry)
                    with open(f"{entry}.made", "a") as log:
                        log.write(f"{socket.gethostname()} {os.getpid()} {time.monotonic() - started:.1f} s\n")
    except OSError as error:
        raise SettingsError(
            f"HFRAY_CACHE={cache_folder()}: the model cannot be kept there ({error}). "
            "Set HFRAY_CACHE to a folder that can be written and has room."
        ) from error
    return entry


def _held(lock: Path) -> bool:
    probe = FileLock(lock, timeout=0)
    try:
        with probe:
            return False
    except TimeoutError:
        return True
