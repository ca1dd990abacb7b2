"""Signals that stop a job at any moment: its answers are written, its exit code is 130, and no process is left.

Every job here starts a Ray of its own, as the jobs of users do. What others can reach of such a Ray is checked with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
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
from tests.processes import MARK, WAIT_SECONDS, Hold, marked, named, open_ports

pytestmark = pytest.mark.ray


class StoppedJob:
    """A job in a process of its own; all of its processes carry a mark in their environment."""

    def __init__(self, tmp_path: Path, *overrides: str, environment: dict[str, str] | None = None) -> None:
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
            env=(os.environ if environment is None else environment) | {MARK: self.mark},
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

    def signal_all(self, number: int) -> None:
        """Signal all processes, as the system does when their terminal closes."""
        for process in self.processes():
            process.send_signal(number)

    def check_resume(self) -> None:
        """Check that answers are kept, and that the same job resumes behind them, in the Ray of this process."""
        done = len(rows_of(self.output))
        assert 0 < done < 400
        assert run_fake(self.output.parent / "in.jsonl", self.output).rows_done_before == done
        assert len(rows_of(self.output)) == 400


@contextlib.contextmanager
def stopped_job(tmp_path: Path, *overrides: str, environment: dict[str, str] | None = None) -> Iterator[StoppedJob]:
    """A job whose processes are killed at the end, whatever the test found."""
    job = StoppedJob(tmp_path, *overrides, environment=environment)
    try:
        yield job
    finally:
        for process in job.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        job.process.wait()


HELD = ["backend.batch_size=16", "workers.rows_per_block=16", "output.flush_seconds=3600"]


@contextlib.contextmanager
def held_job(tmp_path: Path, environment: dict[str, str] | None = None) -> Iterator[StoppedJob]:
    """A job that has answered some rows and pauses. It has written none of them."""
    hold = Hold(tmp_path, 32)
    with stopped_job(tmp_path, *HELD, *hold.overrides, environment=environment) as job:
        hold.wait(1, job.process)
        time.sleep(2)  # answered blocks are on their way to the driver; none is written before the end
        yield job


def test_repeated_interrupts(tmp_path, shared_ray):
    with held_job(tmp_path) as job:
        for _ in range(3):
            job.process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        job.check_end()
    job.check_resume()


def test_a_closed_terminal_stops_the_job_and_not_its_ray(tmp_path, shared_ray):
    """The system sends SIGHUP to all processes of the terminal. Ray's processes must live until the end."""
    with held_job(tmp_path) as job:
        job.signal_all(signal.SIGHUP)
        time.sleep(0.3)
        job.process.terminate()
        job.check_end()
    job.check_resume()


def test_a_signal_to_the_process_group_and_what_others_reach_meanwhile(open_folder, tmp_path, shared_ray):
    """`timeout` and job schedulers signal the group. Other machines and users reach nothing of the job's Ray."""
    home = tmp_path / "home"  # without a token, so that Ray creates one
    home.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
    with held_job(tmp_path, environment | {"HOME": str(home), "RAY_TMPDIR": str(open_folder)}) as job:
        ports = open_ports(job.process.pid)
        assert len(ports) > 5  # those of the GCS, the raylet, its agents and the workers
        assert {address for address, _ in ports} == {"127.0.0.1"}, ports
        private = open_folder / f"hfray-{os.getuid()}"
        assert mode(private) == 0o700
        logs = {path.name for path in (private / "ray").glob("session_2*/logs/*")}
        assert "raylet.out" in logs
        assert logs.isdisjoint({"log_monitor.log", "monitor.log", "dashboard.log"})  # of processes that nobody uses
        assert mode(home / ".ray" / "auth_token") == 0o600
        os.killpg(job.process.pid, signal.SIGTERM)
        job.check_end()
    # The answers are as readable as ever.
    assert mode(next(job.output.glob("*.parquet"))) & 0o044 == 0o044 & ~umask()
    job.check_resume()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found


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
