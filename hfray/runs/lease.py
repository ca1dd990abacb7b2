"""One run at a time owns an output folder: a lease with a heartbeat, and fences that stop the writes of former owners.

The owner is named in `_hfray/owner.json` and writes `_hfray/beat-ID.json` every few seconds. A new run takes the folder
over when the former owner's process is dead (on this machine) or its heartbeat is silent (on another machine).
The new run first names itself the owner, then fences all former owners, and only then reads which rows are done.
So a former owner that was paused or cut off cannot add a file after that.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict

from filelock import FileLock, Timeout

from hfray.data.output import OWN, OutputFolder
from hfray.errors import SettingsError
from hfray.runs.owner import Owner, read_owner

BEAT_SECONDS = 5.0
SILENT_SECONDS = 20.0  # a run with a heartbeat that does not change for this long is dead
LOCK_SECONDS = 2 * SILENT_SECONDS  # wait for another run that is taking the folder over


class Lease:
    """This run's ownership of an output folder, as a context that keeps the heartbeat. `take_over` makes it."""

    def __init__(self, output: OutputFolder, owner: Owner) -> None:
        self.run_id = owner.run_id
        self._output, self._name, self._beats = output, f"beat-{owner.run_id}.json", 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self._output.release(self.run_id)

    def beat(self) -> None:
        """Show other machines that this run lives."""
        self._beats += 1
        with contextlib.suppress(OSError):  # a full disk must not end the run here; writes of rows report it
            self._output.write_json(self._name, {"number": self._beats, "time": time.time()})

    def _keep(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            self.beat()


def take_over(output: OutputFolder, overwrite: bool) -> Lease:
    """Make this process the owner of the folder.

    Args:
        overwrite: delete what the folder holds.

    Raises:
        SettingsError: a live run owns the folder, or the folder cannot be written.
    """
    output.prepare()
    with _lock(output):
        _check_free(output)
        if overwrite:
            output.clear()
            output.prepare()
        owner = Owner.of_this_run(uuid.uuid4().hex[:8])
        lease = Lease(output, owner)
        lease.beat()  # before others see the owner: an owner without a heartbeat counts as dead
        try:
            output.claim(owner.run_id, asdict(owner))
        except OSError as error:
            raise SettingsError(
                f"output.path={output.path}: cannot be written ({error}). Free some space, or name another folder."
            ) from error
    return lease


def _check_free(output: OutputFolder) -> None:
    owner = read_owner(output)
    if owner and _is_alive(output, owner):
        raise SettingsError(
            f"output.path={output.path}: another run (process {owner.pid} on {owner.host}) writes to this folder. "
            "Wait until that run ends, stop it, or name another folder."
        )


def _is_alive(output: OutputFolder, owner: Owner) -> bool:
    if owner.is_here:
        return owner.pid != os.getpid() and owner.lives()
    return _heartbeat_moves(output, owner.run_id)


def _heartbeat_moves(output: OutputFolder, run_id: str) -> bool:
    """Watch the heartbeat of a run on another machine. Clocks differ between machines, so only changes count."""
    first = output.read_json(f"beat-{run_id}.json")
    if first is None:
        return False  # the run ended, or died before its first beat
    deadline = time.monotonic() + SILENT_SECONDS
    while time.monotonic() < deadline:
        time.sleep(min(1.0, SILENT_SECONDS / 10))
        if output.read_json(f"beat-{run_id}.json") != first:
            return True
    return False


@contextlib.contextmanager
def _lock(output: OutputFolder) -> Iterator[None]:
    """On a disk, only one run at a time takes the folder over. Object storage has no locks."""
    if not output.is_local:
        yield
        return
    try:
        with FileLock(f"{output.root}/{OWN}/owner.lock", timeout=LOCK_SECONDS):
            yield
    except Timeout as error:
        raise SettingsError(
            f"output.path={output.path}: another run is taking this folder over. Wait a minute, or name another folder."
        ) from error
