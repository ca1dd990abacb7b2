"""The public names: each imports, `import hfray` loads nothing heavy, and the examples need no other name."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hfray

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
HEAVY = ("ray", "torch", "transformers", "openvino", "pyarrow", "pydantic", "hydra", "langchain_core")


@pytest.mark.parametrize("name", [name for name in hfray.__all__ if name != "HuggingFacePipeline"])
def test_every_public_name_imports(name):
    assert getattr(hfray, name).__doc__
    assert name in dir(hfray)


def test_the_langchain_class_imports():
    pytest.importorskip("langchain_core")
    assert hfray.HuggingFacePipeline.__name__ == "HuggingFacePipeline"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="run_batches"):
        _ = hfray.run_batches


def test_importing_the_package_loads_nothing_heavy():
    code = f"import sys, hfray; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_import_only_public_names(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("hfray", "jobs"):
            assert node.module == "hfray"
            assert {alias.name for alias in node.names} <= set(hfray.__all__)
        if isinstance(node, ast.Import):
            assert not [alias.name for alias in node.names if alias.name.split(".")[0] in ("hfray", "jobs")]


def test_an_engine_answers_through_public_names():
    settings = hfray.load_settings(["conf=fake"], hfray.EngineSettings)
    loop = hfray.EngineLoop(hfray.load_engine(settings))
    try:
        answers = [loop.submit(hfray.Prompt(text), hfray.GenerationParams(max_new_tokens=8)) for text in ("a", "b")]
        assert all(answer.result(timeout=60).finish_reason in ("stop", "length") for answer in answers)
    finally:
        loop.close()


def test_batch_settings_come_from_the_words_of_a_command():
    settings = hfray.load_settings(["conf=fake", "input.path=a.jsonl", "output.path=b"])
    assert isinstance(settings, hfray.BatchSettings)
    assert settings.output.path == "b"
    with pytest.raises(hfray.SettingsError, match=r"input\.path is not given"):
        hfray.load_settings(["output.path=b"])
