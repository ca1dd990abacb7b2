"""`python -m tests.gpu` on a machine that has neither a GPU nor the packages that only jobs and services need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MISSING = (
    "ray hydra omegaconf pydantic orjson langchain_core langchain_huggingface openvino openvino_genai optimum psutil vllm llguidance jsonschema"
).split()
BLOCK = f"import sys\nfor name in {MISSING}:\n    sys.modules[name] = None\n"


@pytest.mark.model
@pytest.mark.timeout(600)
def test_it_runs_and_its_table_comes_last(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(BLOCK)  # in the subprocesses too
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, "-m", "tests.gpu", str(tmp_path / "out"), "--device", "cpu", "--small"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=590)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "out/gpu.json").read_text())["findings"]
    assert {finding["section"] for finding in found} >= {
        "environment",
        "contract",
        "correctness",
        "steps",
        "refill",
        "limits",
        "speed",
        "devices",
    }
    assert not [finding for finding in found if finding["ok"] is False]
    table = (tmp_path / "out/table.md").read_text()
    assert table.strip() in done.stdout
    assert "0 failed" in done.stdout.splitlines()[-1]
