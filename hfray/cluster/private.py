"""What keeps a local Ray to this machine and this user: loopback ports, a private session folder, a private token.

Ray does none of this itself on Linux. Its ports listen on all addresses of the machine, its folders are writable by
everyone, and everyone can read its logs and its token. A user who has the token can run code in Ray's processes.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hfray.errors import SettingsError

# Ray's sockets have the longest paths in its folder, and the kernel accepts 107 bytes.
MAX_SOCKET_PATH = 107
LONGEST_SOCKET = "session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"


@contextlib.contextmanager
def loopback_ports(ray: Any) -> Iterator[None]:
    """Ray's processes that start in this context listen on loopback only.

    Ray has a switch for that, which is off on Linux: without clusters, it takes 127.0.0.1 for the address of this
    machine. Ray read its environment variable at import; the processes that it starts will read it again.
    """
    constants = ray._private.ray_constants
    name, enabled = constants.ENABLE_RAY_CLUSTERS_ENV_VAR, constants.ENABLE_RAY_CLUSTER
    value = os.environ.get(name)
    os.environ[name], constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = enabled
        del os.environ[name]
        if value is not None:
            os.environ[name] = value


def session_folder() -> str:
    """The folder for Ray's sessions, inside a folder that only this user can enter: Ray opens its own to everyone.

    It is inside RAY_TMPDIR or, as in Ray, inside TMPDIR or /tmp.

    Raises:
        SettingsError: the folder cannot be made, is another user's, or has a path too long for Ray's sockets.
    """
    given = os.environ.get("RAY_TMPDIR")
    if given:
        return _session_folder(Path(given).expanduser().absolute(), f"RAY_TMPDIR={given}")
    temporary = os.environ.get("TMPDIR")
    if temporary:
        with contextlib.suppress(SettingsError):  # TMPDIR is not only for Ray, so its path may be too long
            return _session_folder(Path(temporary).absolute(), f"TMPDIR={temporary}")
    return _session_folder(Path("/tmp"), "RAY_TMPDIR is not set")  # noqa: S108  Ray's own default


def _session_folder(base: Path, setting: str) -> str:
    private = base if _is_private(base) else base / f"hfray-{os.getuid()}"
    folder = private / "ray"
    excess = len(os.fsencode(folder / LONGEST_SOCKET)) - MAX_SOCKET_PATH
    if excess > 0:
        raise SettingsError(
            f"{setting}: the path is {excess} bytes too long for the sockets of Ray. Set RAY_TMPDIR to a shorter path."
        )
    try:
        base.mkdir(parents=True, exist_ok=True)
        private.mkdir(mode=0o700, exist_ok=True)
        found = private.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise SettingsError(
                f"{setting}: {private} is not a folder of this user, so Ray's files in it would not be private. Set "
                "RAY_TMPDIR to a folder of yours."
            )
        private.chmod(0o700)
    except OSError as error:
        raise SettingsError(
            f"{setting}: cannot make the folder {private} for Ray's session ({error.strerror}). Set RAY_TMPDIR to a "
            "folder that you can write to."
        ) from error
    return str(folder)


def _is_private(folder: Path) -> bool:
    """Whether a folder exists that only this user can enter."""
    try:
        found = folder.stat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def private_token(ray: Any) -> None:
    """Make sure that only this user can read Ray's token file, which a local Ray creates if there is none."""
    setup = ray._private.authentication.authentication_token_setup
    umask = os.umask(0o077)
    try:  # what `ray.init` does first
        setup.enable_token_auth_by_default()
        setup.ensure_token_if_auth_enabled()
    finally:
        os.umask(umask)
    with contextlib.suppress(OSError):  # there is no such file, or it is not this user's
        setup._get_default_token_path().chmod(0o600)
