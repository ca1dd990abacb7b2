"""Whether the process of a run still lives, although process ids are reused and clocks are set."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class ProcessMark:
    """What identifies a process on its host.

    Attributes:
        began: its start by the wall clock. A clock that is set moves this time.
        namespace: the namespace that `pid` counts in. Containers of one host have their own namespaces.
        birth: the host's boot id and the process's start in clock ticks since boot; no clock moves these. None where
            the system has no such values, and in records of older versions.
    """

    host: str = ""
    pid: int = 0
    began: float = 0.0
    birth: str | None = None
    namespace: str | None = None

    @classmethod
    def of_this_process(cls) -> ProcessMark:
        began = psutil.Process().create_time()
        return cls(socket.gethostname(), os.getpid(), began, _birth(os.getpid()), _namespace())

    @property
    def is_here(self) -> bool:
        """Whether this process can see that process by its id."""
        return self.host == socket.gethostname() and self.namespace in (None, _namespace())

    def lives(self) -> bool:
        """Whether this very process still lives on this host."""
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            birth = _birth(self.pid)
            if self.birth is not None and birth is not None:
                return self.birth == birth
            return abs(process.create_time() - self.began) < 1
        except (psutil.Error, ValueError, OverflowError):
            return False


def _namespace() -> str | None:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _birth(pid: int) -> str | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return f"{boot}/{stat.rpartition(')')[2].split()[19]}"  # field 22; the name in brackets may hold spaces
    except (OSError, IndexError):
        return None
