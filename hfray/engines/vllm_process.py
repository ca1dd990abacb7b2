"""What hfray adds to vLLM's processes.

vLLM calls `watch_owner` in each of them before it loads the model, because it is an entry point of vLLM's plugins
(pyproject.toml). Where hfray is not installed as a package, vLLM's workers import this file for their extension.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Any

import psutil

from hfray.engines.precision import precision_of

_watching = 0  # the process whose thread watches
OWNER = "HFRAY_VLLM_OWNER"  # environment variable: the id of the process that vLLM's processes work for


class WorkerExtension:
    """Methods that vLLM's workers get besides their own."""

    def hfray_precision(self: Any) -> str:
        """What the loaded model computes in, as `precision_of`."""
        return precision_of(self.get_model())


def end_with(owner: int) -> None:
    """Wait until the process `owner` ends, then end this process, and vLLM's core if this process is its child.

    A worker of hfray ends at once if its engine hangs, and the kernel may kill it. vLLM's processes do not notice that:
    they would keep the GPU's memory.
    """
    core = None
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(os.getppid())
        core = parent if parent.ppid() == owner else None  # with several GPUs the core has child processes
        psutil.Process(owner).wait()
    if core is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            core.kill()
    os._exit(1)


def watch_owner() -> None:
    """End this process with its owner, unless this process watches already, or is the owner itself."""
    global _watching
    owner, own = int(os.environ.get(OWNER) or os.getpid()), os.getpid()
    if own not in (owner, _watching):  # a forked process inherits the number, but not the thread
        _watching = own
        threading.Thread(target=end_with, args=(owner,), name="hfray-owner", daemon=True).start()


watch_owner()
