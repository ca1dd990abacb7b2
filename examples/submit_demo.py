"""Run the demo job through `ray job submit` on this machine: start a head with token authentication, submit, show answers.

    python examples/submit_demo.py [--installed] [key=value ...]

On a cluster of your own you need only the middle part: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (or
RAY_AUTH_TOKEN) in the environment, and run `ray job submit --address http://HEAD:8265 --working-dir . -- python -m
jobs.batch ...` with absolute paths or URLs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
HEAD_SECONDS = 120.0  # how long to wait for the head
STOP_SECONDS = 5.0  # how long to wait for the head to end by itself
# Ray does not upload these, nor what .gitignore names.
EXCLUDES = [".git", ".venv", "outputs", "tests", "k8s", "*.parquet"]


@contextlib.contextmanager
def head(folder: Path, num_cpus: int | None = None) -> Iterator[dict[str, str]]:
    """Start a Ray head on loopback, with a token; yields the environment variables that its clients need.

    At the end it stops only the processes that it started. `ray stop` would stop every Ray on this machine.
    """
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    environment = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    gcs, dashboard, client, agent = free_ports(4)
    command = ["ray", "start", "--head", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1"]
    command += [f"--port={gcs}", f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"]
    command += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    command += [f"--temp-dir={folder / 'ray'}", "--object-store-memory=200000000"]
    command += [f"--num-cpus={num_cpus}"] if num_cpus else []
    with open(folder / "head.log", "w") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{dashboard}"
        wait_for(process, address, token.read_text(), folder / "head.log")
        yield environment | {"RAY_API_SERVER_ADDRESS": address, "RAY_ADDRESS": address}
    finally:
        end(process)


def free_ports(count: int) -> list[int]:
    """Free ports of loopback, below the range that systems assign by themselves, so that they stay free until we use them."""
    found: set[int] = set()
    while len(found) < count:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", secrets.choice(range(20_000, 32_768))))
            found.add(probe.getsockname()[1])
    return list(found)


def wait_for(process: subprocess.Popen, address: str, token: str, log: Path) -> None:
    """Wait until the head accepts jobs. Raises RuntimeError with the end of its log."""
    request = urllib.request.Request(f"{address}/api/jobs/", headers={"Authorization": f"Bearer {token}"})  # noqa: S310
    deadline = time.monotonic() + HEAD_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(request, timeout=5):  # noqa: S310
            return
        time.sleep(0.5)
    raise RuntimeError(f"the head did not start: {log.read_text()[-2000:]}")


def end(process: subprocess.Popen) -> None:
    """End a process and its descendants, by their ids. Ray's own processes end each other in the right order."""
    family = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=STOP_SECONDS)
    process.kill()
    process.wait()
    for member in family:  # psutil distinguishes a process from a later one with the same id
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=STOP_SECONDS)


def submit(environment: dict[str, str], *overrides: str, installed: bool = False, options: tuple = ()) -> int:
    """Submit a batch job and follow its log. Returns the exit code of `ray job submit`: 0, or 1 if the job failed.

    Args:
        installed: use the hfray that the cluster has installed, instead of uploading this checkout.
    """
    command = ["ray", "job", "submit", *options]
    if not installed:
        command += ["--working-dir", str(ROOT), "--runtime-env-json", json.dumps({"excludes": EXCLUDES})]
    command += ["--", "python", "-m", "jobs.batch", *overrides]
    return subprocess.run(command, env=environment, check=False, cwd=tempfile.gettempdir()).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--installed", action="store_true", help="use the installed hfray, upload no working directory")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of jobs.batch")
    arguments = parser.parse_args()
    answers = ROOT / "outputs" / "submit-demo"
    overrides = [f"input.path={ROOT / 'examples' / 'questions.jsonl'}", f"output.path={answers}", "input.limit=8"]
    folder = Path(tempfile.mkdtemp(prefix="hfray-"))
    try:
        print("starting a Ray head with token authentication on 127.0.0.1", flush=True)
        with head(folder) as environment:
            code = submit(environment, *overrides, *arguments.overrides, installed=arguments.installed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if code == 0:
        import pyarrow.dataset as ds

        print(ds.dataset(answers, format="parquet").to_table(columns=["row_id", "generated_text"]).to_pandas())
    return code


if __name__ == "__main__":
    sys.exit(main())
