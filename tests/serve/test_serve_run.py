"""Ray Serve's own command and config file start the service."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml

from hfray.serve.deployment import overrides
from tests.conftest import run_job
from tests.processes import WAIT_SECONDS, open_ports
from tests.serving import free_port


@pytest.mark.server
def test_config_for_a_ray_service(tmp_path):
    from ray.serve.schema import ServeDeploySchema

    path = tmp_path / "serve.yaml"
    options = ["conf=fake", "serve.replicas=[1,3]", "serve.host=0.0.0.0", "serve.api_keys=env:KEYS", "prompt=chat"]
    done = run_job(*options, f"emit={path}", module="jobs.serve", timeout=60)
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(path.read_text())
    application = ServeDeploySchema.model_validate(config).applications[0]
    assert application.import_path == "hfray.serve:app"
    assert sorted(overrides(application.args)) == sorted(options)
    assert config["http_options"] == {"host": "0.0.0.0", "port": 8000}


@pytest.mark.server
@pytest.mark.parametrize("from_config", [True, False])
def test_serve_run_starts_the_service(tmp_path, from_config, shared_ray):
    """With a config file, on a Ray that runs. Without, hfray starts a Ray, and the port is 8000, whatever it is told."""
    port, config = free_port() if from_config else 8000, tmp_path / "serve.yaml"
    what = [str(config)] if from_config else ["hfray.serve:app", "conf=fake"]
    if from_config:
        options = ["conf=fake", f"serve.port={port}", f"emit={config}"]
        assert run_job(*options, module="jobs.serve", timeout=60).returncode == 0
    else:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                pytest.skip("port 8000 is taken")
    log, url, deadline = tmp_path / "log", f"http://127.0.0.1:{port}", time.monotonic() + WAIT_SECONDS
    with log.open("w") as out:
        command = [Path(sys.executable).parent / "serve", "run", *what]
        environment = shared_ray if from_config else None
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True, env=environment)
    try:
        while not answers(f"{url}/health"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        answer = httpx.post(f"{url}/v1/completions", json={"prompt": "x", "max_tokens": 3}, timeout=60)
        assert answer.json()["usage"]["completion_tokens"] == 3
        if not from_config:  # hfray starts the Ray
            assert {address for address, _ in open_ports(process.pid)} == {"127.0.0.1"}
    finally:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def answers(url: str) -> bool:
    """Whether a server answers with 200."""
    try:
        return httpx.get(url, timeout=60).status_code == 200
    except httpx.TransportError:
        return False


def test_arguments_of_the_builder():
    args = {"conf": "fake", "serve": {"port": 1, "replicas": [1, 2], "api_keys": None}, "prompt.chat": True}
    assert overrides(args) == [
        "conf=fake",
        "serve.port=1",
        "serve.replicas=[1, 2]",
        "serve.api_keys=null",
        "prompt.chat=true",
    ]
