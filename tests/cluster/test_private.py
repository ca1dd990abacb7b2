"""A local Ray: what of it other machines and other users can reach."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from hfray.cluster.private import loopback_ports, private_token, session_folder
from hfray.errors import SettingsError
from tests.batch.running import QUICK, table
from tests.processes import WAIT_SECONDS, Hold, open_ports


@pytest.fixture
def base(monkeypatch) -> Iterator[Path]:
    """A folder with a short path, open to everyone as /tmp is, and no variable that names another one."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.delenv("TMPDIR", raising=False)
    folder = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_the_session_is_in_a_private_folder(base, monkeypatch, variable):
    monkeypatch.setenv(variable, str(base / "new"))
    private = base / "new" / f"hfray-{os.getuid()}"
    for _ in range(2):  # the second run finds the folder
        assert session_folder() == str(private / "ray")
        assert mode(private) == 0o700
        private.chmod(0o755)


def test_without_a_variable_the_session_is_below_tmp(base):
    assert session_folder() == f"/tmp/hfray-{os.getuid()}/ray"


def test_a_private_folder_is_used_as_it_is(base, monkeypatch):
    base.chmod(0o700)
    monkeypatch.setenv("RAY_TMPDIR", str(base))
    assert session_folder() == str(base / "ray")


def test_a_path_too_long_for_sockets(base, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(base / ("x" * 60)))
    assert session_folder() == f"/tmp/hfray-{os.getuid()}/ray"  # TMPDIR is not only for Ray
    monkeypatch.setenv("RAY_TMPDIR", str(base / ("x" * 60)))
    with pytest.raises(SettingsError, match=r"RAY_TMPDIR=.*xx: the path is \d+ bytes too long"):
        session_folder()
    assert list(base.iterdir()) == []


def test_a_folder_that_cannot_be_used(base, monkeypatch):
    (base / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", str(base / "file"))
    with pytest.raises(SettingsError, match=r"RAY_TMPDIR=.*cannot make the folder"):
        session_folder()
    (base / "elsewhere").mkdir()
    (base / f"hfray-{os.getuid()}").symlink_to(base / "elsewhere")
    monkeypatch.setenv("RAY_TMPDIR", str(base))
    with pytest.raises(SettingsError, match=r"RAY_TMPDIR=.*not a folder of this user"):
        session_folder()


def test_an_unusable_folder_is_named_by_the_command(base, tmp_path, monkeypatch):
    (base / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", str(base / "file"))
    command = [
        sys.executable,
        "-m",
        "jobs.batch",
        f"input.path={table(tmp_path, 1)}",
        f"output.path={tmp_path / 'out'}",
    ]
    done = subprocess.run([*command, *QUICK], capture_output=True, text=True, timeout=WAIT_SECONDS)
    assert done.returncode == 2, done.stderr
    assert "RAY_TMPDIR=" in done.stderr
    assert "ray.address" not in done.stderr


def test_the_token_that_exists_becomes_private(tmp_path, monkeypatch):
    import ray

    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("0" * 64)
    token.chmod(0o644)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    private_token(ray)
    assert mode(token) == 0o600


def test_the_switch_is_set_only_while_ray_starts(monkeypatch):
    import ray

    constants = ray._private.ray_constants
    name = constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ray._private.worker, "_global_node", None)  # the tests' own Ray, if it runs, has an address
    before = constants.ENABLE_RAY_CLUSTER
    with loopback_ports(ray):
        assert (os.environ[name], constants.ENABLE_RAY_CLUSTER) == ("0", False)
        assert ray.util.get_node_ip_address() == "127.0.0.1"
    assert name not in os.environ
    assert before == constants.ENABLE_RAY_CLUSTER


@pytest.mark.ray
def test_other_machines_and_users_reach_nothing_of_a_job(base, tmp_path):
    hold = Hold(tmp_path, 16)
    source, output = table(tmp_path, 64), tmp_path / "out"
    settings = [f"input.path={source}", f"output.path={output}", *QUICK, "backend.batch_size=16", *hold.overrides]
    home = tmp_path / "home"  # without a token, so that Ray creates one
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    environment |= {"HOME": str(home), "RAY_TMPDIR": str(base)}
    job = subprocess.Popen(
        [sys.executable, "-m", "jobs.batch", *settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    try:
        hold.wait(1, job)
        ports = open_ports(job.pid)
        assert len(ports) > 5  # those of the GCS, the raylet, its agents and the workers
        assert {address for address, _ in ports} == {"127.0.0.1"}, ports
        private = base / f"hfray-{os.getuid()}"
        assert mode(private) == 0o700
        logs = {path.name for path in (private / "ray").glob("session_2*/logs/*")}
        assert "raylet.out" in logs
        assert logs.isdisjoint({"log_monitor.log", "monitor.log", "dashboard.log"})  # of processes that nobody uses
        assert mode(home / ".ray" / "auth_token") == 0o600
        hold.release()
        assert job.wait(WAIT_SECONDS) == 0, job.stdout.read()
    finally:
        if job.poll() is None:
            for process in [*psutil.Process(job.pid).children(recursive=True), job]:
                process.kill()
    assert mode(next(output.glob("*.parquet"))) & 0o044 == 0o044 & ~_umask()  # the answers are as readable as ever


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
