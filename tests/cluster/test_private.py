"""What keeps a local Ray private. tests/batch/test_signals.py looks at the processes of a job."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hfray.cluster.private import loopback_ports, private_token, session_folder
from hfray.errors import SettingsError
from tests.batch.running import QUICK, table
from tests.processes import WAIT_SECONDS


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_the_session_is_in_a_private_folder(open_folder, monkeypatch, variable):
    monkeypatch.setenv(variable, str(open_folder / "new"))
    private = open_folder / "new" / f"hfray-{os.getuid()}"
    for _ in range(2):  # the second run finds the folder
        assert session_folder() == str(private / "ray")
        assert mode(private) == 0o700
        private.chmod(0o755)


def test_without_a_variable_the_session_is_below_tmp(open_folder):
    assert session_folder() == f"/tmp/hfray-{os.getuid()}/ray"


def test_a_private_folder_is_used_as_it_is(open_folder, monkeypatch):
    open_folder.chmod(0o700)
    monkeypatch.setenv("RAY_TMPDIR", str(open_folder))
    assert session_folder() == str(open_folder / "ray")


def test_a_path_too_long_for_sockets(open_folder, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(open_folder / ("x" * 60)))
    assert session_folder() == f"/tmp/hfray-{os.getuid()}/ray"  # TMPDIR is not only for Ray
    monkeypatch.setenv("RAY_TMPDIR", str(open_folder / ("x" * 60)))
    with pytest.raises(SettingsError, match=r"RAY_TMPDIR=.*xx: the path is \d+ bytes too long"):
        session_folder()
    assert list(open_folder.iterdir()) == []


def test_a_folder_that_cannot_be_used(open_folder, monkeypatch):
    (open_folder / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", str(open_folder / "file"))
    with pytest.raises(SettingsError, match=r"RAY_TMPDIR=.*cannot make the folder"):
        session_folder()
    (open_folder / "elsewhere").mkdir()
    (open_folder / f"hfray-{os.getuid()}").symlink_to(open_folder / "elsewhere")
    monkeypatch.setenv("RAY_TMPDIR", str(open_folder))
    with pytest.raises(SettingsError, match=r"RAY_TMPDIR=.*not a folder of this user"):
        session_folder()


def test_an_unusable_folder_is_named_by_the_command(open_folder, tmp_path, monkeypatch):
    (open_folder / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", str(open_folder / "file"))
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
