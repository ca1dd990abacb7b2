"""vLLM's processes end with the process that they work for; other processes stand for them."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

WORKER = "import time, hfray.engines.vllm_process; print('watching', flush=True); time.sleep(100)"
CORE = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {WORKER!r}]); time.sleep(100)"
OWNER = """
import os, subprocess, sys, time
from hfray.engines.vllm_process import OWNER
subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=os.environ | {OWNER: str(os.getpid())})
time.sleep(100)
"""


@pytest.mark.parametrize(("code", "processes"), [(WORKER, 1), (CORE, 2)], ids=["core", "worker-below-core"])
def test_the_processes_of_vllm_end_with_their_owner(code, processes):
    """vLLM's worker runs in the core, or in a child of the core if there are several GPUs."""
    owner = subprocess.Popen([sys.executable, "-c", OWNER, code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline() == "watching\n"
    children = psutil.Process(owner.pid).children(recursive=True)
    assert len(children) == processes
    owner.kill()
    owner.wait()
    _, left = psutil.wait_procs(children, timeout=30)
    assert not left
    assert psutil.Process().is_running()


def test_a_process_that_works_for_a_stranger_ends_alone():
    """Its parent is this test, which is neither the owner nor the owner's child."""
    stranger = subprocess.Popen([sys.executable, "-c", OWNER, "import time; time.sleep(100)"], start_new_session=True)
    code = f"import os; from hfray.engines import vllm_process; vllm_process.end_with({stranger.pid})"
    process = subprocess.Popen([sys.executable, "-c", code])
    for child in psutil.Process(stranger.pid).children():
        child.kill()
    stranger.kill()
    stranger.wait()
    assert process.wait(timeout=30) == 1


def test_the_owners_own_process_watches_nobody():
    code = "import threading, hfray.engines.vllm_process; print(threading.active_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "1\n"
