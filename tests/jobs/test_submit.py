"""`ray job submit` to a Ray head of this test on loopback, with a token: status, exit code, stop and resume."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from tests.processes import WAIT_SECONDS, Hold

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
pytest.importorskip("aiohttp_cors", reason="`ray job submit` needs the job server: pip install 'ray[default]'")


def demo_module():
    spec = importlib.util.spec_from_file_location("submit_demo", ROOT / "examples" / "submit_demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


demo = demo_module()


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="hfray-"))  # short: the paths of Ray's sockets may have 107 characters
    try:
        with demo.head(folder, num_cpus=2) as found:
            yield found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def ray_job(environment, *words: str, timeout: float = 180) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["ray", "job", *words], env=environment, capture_output=True, text=True, timeout=timeout, cwd="/"
    )  # fmt: skip


def ask(environment, path: str, body: dict | None = None, token: str | None = None) -> dict:
    """An answer of the job server. `ray job` asks the same, but each of its starts imports Ray."""
    token = token or Path(environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    request = urllib.request.Request(
        f"{environment['RAY_ADDRESS']}/api/jobs/{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def details(environment, job: str) -> dict:
    return ask(environment, job)


def wait_for_end(environment, job: str) -> dict:
    deadline = time.monotonic() + WAIT_SECONDS
    while (found := details(environment, job))["status"] in ("PENDING", "RUNNING"):
        assert time.monotonic() < deadline, found
        time.sleep(0.3)
    return found


def row_ids(folder: Path) -> list[str]:
    return ds.dataset(folder, format="parquet").to_table(columns=["row_id"])["row_id"].to_pylist()


def test_a_wrong_token_starts_no_job(environment):
    with pytest.raises(urllib.error.HTTPError, match=r"40[13]"):
        ask(environment, "", {"entrypoint": "echo hello"}, token="0" * 64)
    assert "echo hello" not in json.dumps(ask(environment, ""))


def test_relative_paths_are_refused_and_the_exit_code_is_the_status(environment, questions):
    """The job uses the package that is installed on the cluster; it uploads no code."""
    command = ["submit", "--submission-id", "relative", "--", "python", "-m", "jobs.batch", "conf=fake"]
    done = ray_job(environment, *command, f"input.path={questions}", "output.path=answers")
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "output.path=answers: is a relative path" in said
    assert "absolute path" in said
    assert "Traceback" not in said.split("Running entrypoint")[-1]
    found = details(environment, "relative")
    assert found["status"] == "FAILED"
    assert found["driver_exit_code"] == 2


def test_a_stopped_job_resumes(environment, tmp_path):
    """The job uploads this checkout as its working directory."""
    table, out = tmp_path / "table.jsonl", tmp_path / "out"
    table.write_text("".join(json.dumps({"question": f"Number {i}?"}) + "\n" for i in range(200)))
    runtime = json.dumps({"excludes": demo.EXCLUDES})
    submit = ["submit", "--working-dir", str(ROOT), "--runtime-env-json", runtime]
    command = ["python", "-m", "jobs.batch", "conf=fake", f"input.path={table}", f"output.path={out}"]
    held = ["backend.tokens_per_step=4", "backend.batch_size=8", "output.flush_seconds=0.5"]
    held += Hold(tmp_path, 40).overrides
    first = ray_job(environment, *submit, "--no-wait", "--submission-id", "first", "--", *command, *held)
    assert first.returncode == 0, first.stderr
    deadline = time.monotonic() + WAIT_SECONDS
    while not list(out.glob("*.parquet")):
        assert details(environment, "first")["status"] in ("PENDING", "RUNNING"), ask(environment, "first/logs")
        assert time.monotonic() < deadline
        time.sleep(0.2)
    ask(environment, "first/stop", {})
    assert wait_for_end(environment, "first")["status"] == "STOPPED"
    written = len(row_ids(out))
    assert 0 < written < 200
    second = ray_job(environment, *submit, "--submission-id", "second", "--", *command)
    assert second.returncode == 0, second.stdout + second.stderr
    assert details(environment, "second")["status"] == "SUCCEEDED"
    ids = row_ids(out)
    assert len(ids) == len(set(ids)) == 200
    logs = ask(environment, "second/logs")["logs"]
    ours = logs.split("Running entrypoint")[-1]
    assert "200" in ours
    assert not re.search(r"[\r\x1b]", ours.split("\n", 1)[1])  # plain lines in a log


def test_the_demo_ends_every_process_that_it_started(tmp_path):
    """The demo ends all of its own processes and no other ones, so it may not use `ray stop`."""
    import psutil

    child = subprocess.Popen(["sh", "-c", "sleep 600 & sleep 600"], start_new_session=True)
    time.sleep(0.3)
    family = psutil.Process(child.pid).children(recursive=True)
    assert family
    demo.end(child)
    assert child.poll() is not None
    assert not [member for member in family if member.is_running() and member.status() != psutil.STATUS_ZOMBIE]
    assert "ray stop" not in re.sub(r'""".*?"""', "", (ROOT / "examples" / "submit_demo.py").read_text(), flags=re.S)
