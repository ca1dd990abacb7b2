"""Signals that stop a job at any moment: its answers are written, its exit code is 130, and no process is left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from hfray.cluster.connection import connected
from tests.batch.running import QUICK, rows_of, run_fake, table
from tests.conftest import batch_settings
from tests.processes import MARK, WAIT_SECONDS, Hold, marked, named, wait_for_file

pytestmark = pytest.mark.ray


class StoppedJob:
    """A job in a process of its own; all of its processes carry a mark in their environment."""

    def __init__(self, tmp_path: Path, *overrides: str) -> None:
        self.mark, self.output = uuid.uuid4().hex, tmp_path / "out"
        source = tmp_path / "in.jsonl"
        if not source.exists():
            table(tmp_path, 400)
        command = [sys.executable, "-m", "jobs.batch", f"input.path={source}", f"output.path={self.output}", *QUICK]
        self.process = subprocess.Popen(
            [*command, *overrides],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {MARK: self.mark},
            process_group=0,
        )

    def processes(self) -> list[psutil.Process]:
        """All living processes of the job."""
        return marked(self.mark)

    def check_end(self) -> None:
        """Check the exit code, the record of the run, and that no process is left."""
        _, stderr = self.process.communicate(timeout=WAIT_SECONDS)
        assert self.process.returncode == 130, stderr
        assert "Traceback" not in stderr
        assert json.loads((self.output / "_hfray" / "summary.json").read_text())["exit_code"] == 130
        deadline = time.monotonic() + 20  # Ray's helper processes end themselves soon after the others
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not left, left


@contextlib.contextmanager
def stopped_job(tmp_path: Path, *overrides: str) -> Iterator[StoppedJob]:
    """A job whose processes are killed at the end, whatever the test found."""
    job = StoppedJob(tmp_path, *overrides)
    try:
        yield job
    finally:
        for process in job.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        job.process.wait()


@pytest.mark.parametrize(
    ("signals", "send"),
    [
        ([signal.SIGINT, signal.SIGINT, signal.SIGINT], os.kill),
        ([signal.SIGHUP, signal.SIGTERM], os.kill),
        ([signal.SIGTERM], os.killpg),  # to all processes of the group, as `timeout` and job schedulers send it
    ],
)
def test_the_answers_are_kept_and_no_process_is_left(signals, send, tmp_path, shared_ray):
    hold = Hold(tmp_path, 32)
    held = ["backend.batch_size=16", "workers.rows_per_block=16", "output.flush_seconds=3600", *hold.overrides]
    with stopped_job(tmp_path, *held) as job:
        hold.wait(1, job.process)
        time.sleep(2)  # answered blocks are on their way to the driver; none is written before the end
        for number in signals:
            send(job.process.pid, number)
            time.sleep(0.3)
        job.check_end()
    done = len(rows_of(job.output))
    assert 0 < done < 400
    assert run_fake(tmp_path / "in.jsonl", job.output).rows_done_before == done
    assert len(rows_of(job.output)) == 400


def test_a_closed_terminal_stops_the_job_and_not_its_ray(tmp_path):
    """The system sends SIGHUP to all processes of the terminal. Ray's processes must live until the end."""
    hold = Hold(tmp_path, 32)
    held = ["backend.batch_size=16", "workers.rows_per_block=16", *hold.overrides]
    with stopped_job(tmp_path, *held) as job:
        wait_for_file(job.output)
        for process in job.processes():
            process.send_signal(signal.SIGHUP)
        job.check_end()
    assert rows_of(job.output)


@pytest.mark.parametrize(
    ("sent", "send", "started"),
    [
        (signal.SIGTERM, os.kill, "gcs_server"),  # Ray handles SIGTERM
        (signal.SIGHUP, os.kill, "gcs_server"),  # the system sends SIGHUP
        (signal.SIGTERM, os.killpg, "raylet/raylet"),  # late in `ray.init`
    ],
)
def test_a_signal_while_ray_starts(sent, send, started, tmp_path):
    with stopped_job(tmp_path) as job:
        deadline = time.monotonic() + WAIT_SECONDS
        while not named(job.process.pid, started):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        send(job.process.pid, sent)
        job.check_end()


def test_ray_does_not_replace_the_handler(monkeypatch):
    import ray

    def init(*_: object, **__: object) -> None:
        ray._private.utils.set_sigterm_handler(lambda *_: sys.exit(15))
        os.kill(os.getpid(), signal.SIGTERM)

    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append(True))
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    try:
        with connected(batch_settings("input.path=-", "output.path=-", "ray.address=nowhere")):
            pass
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received
