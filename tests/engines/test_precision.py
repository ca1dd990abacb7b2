"""What the machine computes fast, and what a loaded model computes in. The tests hold on any CPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from hfray.engines.load import load_engine
from hfray.engines.precision import (
    cpu_computes_bf16,
    gpu_formats,
    openvino_properties,
    precision_of,
    torch_dtype,
)
from tests.conftest import batch_settings
from tests.engines.making import make_engine

HERE = "bf16" if cpu_computes_bf16() else "fp32"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor : 0\nflags\t\t: fpu avx2 avx512f avx512_bf16\n", True),
        ("flags : fpu amx_bf16 amx_tile\nflags : fpu\n", True),
        ("flags : fpu avx2 avx512f\n", False),
        ("Features : fp asimd bf16\n", False),
        ("", False),
    ],
)
def test_instructions_for_bf16(tmp_path, text, expected):
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_computes_bf16(tmp_path / "cpuinfo") is expected


def test_a_system_that_does_not_tell_its_cpu(tmp_path):
    assert cpu_computes_bf16(tmp_path / "absent") is False


def test_openvino_says_the_same_of_this_cpu():
    openvino = pytest.importorskip("openvino")
    assert cpu_computes_bf16() == ("BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


@pytest.fixture
def gpu(monkeypatch):
    """Make torch see GPUs of some capabilities; torch emulates bf16 on all of them, as real torch does."""

    def see(*capabilities, bf16):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or bf16
        )

    return see


def test_formats_of_gpus(gpu):
    gpu((8, 0), bf16=True)
    assert gpu_formats() == ["bf16", "fp16"]
    gpu((7, 5), bf16=False)
    assert gpu_formats() == ["fp16"]
    gpu((7, 5), (6, 1), bf16=False)
    assert gpu_formats() == []


def test_auto_on_a_gpu_is_the_checkpoints_own_format_or_the_gpus(gpu):
    gpu((8, 0), bf16=True)
    assert torch_dtype("auto", "float16", on_cpu=False) == "float16"
    assert torch_dtype("auto", "bfloat16", on_cpu=False) == "bfloat16"
    assert torch_dtype("auto", "float32", on_cpu=False) == "bfloat16"
    assert torch_dtype("auto", None, on_cpu=False) == "bfloat16"
    assert torch_dtype("exact", "float16", on_cpu=False) == "float32"
    gpu((7, 5), bf16=False)
    assert torch_dtype("auto", "bfloat16", on_cpu=False) == "float16"
    gpu((6, 1), bf16=False)
    assert torch_dtype("auto", "bfloat16", on_cpu=False) == "float32"


def test_torchs_format_on_a_cpu():
    names = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "exact": "float32"}
    assert {name: torch_dtype(name, None, on_cpu=True) for name in names} == names
    assert torch_dtype("auto", "float16", on_cpu=True) == names[HERE]


def test_a_model_of_torch_computes_in_the_format_of_most_of_its_weights():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8).bfloat16(), torch.nn.LayerNorm(8))
    model.register_parameter("packed", torch.nn.Parameter(torch.zeros(99, dtype=torch.uint8), requires_grad=False))
    assert precision_of(model) == "bf16"


def test_openvinos_properties():
    pytest.importorskip("openvino")
    types = {"fp32": "f32", "bf16": "bf16"}
    both = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    assert openvino_properties("exact", "CPU", {}) == openvino_properties("fp32", "CPU", {}) == both
    assert openvino_properties("auto", "CPU", {"A": 1}) == {"A": 1, "KV_CACHE_PRECISION": types[HERE]}
    given = {"INFERENCE_PRECISION_HINT": "f32", "KEY_CACHE_PRECISION": "u8"}
    assert openvino_properties("fp32", "CPU", given) == given
    assert openvino_properties("auto", "GPU", {}) == {}
    accurate = {"EXECUTION_MODE_HINT": "ACCURACY"}
    assert openvino_properties("auto", "CPU", accurate) == accurate | {"KV_CACHE_PRECISION": "f32"}


@pytest.mark.parametrize("options", [{}, {"precision": "exact"}, {"properties": {"KV_CACHE_PRECISION": "u8"}}])
def test_openvinos_own_log_says_the_same(tiny_gpt2_ir, options):
    """GenAI prints the properties of its compiled model if OPENVINO_LOG_LEVEL is set."""
    pytest.importorskip("openvino_genai")
    code = (
        "import pathlib; from hfray.engines.openvino import OpenVINOEngine;"
        f"engine = OpenVINOEngine(pathlib.Path({str(tiny_gpt2_ir)!r}), kv_cache_gib=1, **{ {'precision': 'auto'} | options!r});"
        "print('told', engine.precision)"
    )
    environment = os.environ | {"OPENVINO_LOG_LEVEL": "4"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=environment)
    printed = done.stdout.partition("Model: LLM with Paged Attention")[2]
    assert printed, "OpenVINO GenAI no longer prints the properties of its model"
    properties = {key: value for key, _, value in (line.strip().partition(": ") for line in printed.splitlines())}
    names = {"f32": "fp32", "bf16": "bf16"}
    computes, kept = names[properties["INFERENCE_PRECISION_HINT"]], properties["KV_CACHE_PRECISION"]
    expected = computes if names.get(kept) == computes else f"{computes}, KV cache {kept}"
    assert done.stdout.splitlines()[-1] == f"told {expected}"
    assert computes == ("fp32" if options.get("precision") else HERE)


def test_a_format_that_the_device_does_not_compute_in_is_refused(monkeypatch, request):
    """As OpenVINO on a CPU without bf16, which computes in fp32 in spite of its hint."""
    settings = batch_settings("input.path=-", "output.path=-", "conf=fake", "model.precision=bf16")
    assert load_engine(settings).precision == "bf16"
    engine = make_engine("fake", request)
    monkeypatch.setattr("hfray.engines.load._load", lambda *_: engine)
    with pytest.raises(ValueError, match=r"model\.precision=bf16: the engine computes in fp32.*model\.precision=auto"):
        load_engine(settings)


def test_asking_a_device_pins_no_thread_to_a_core():
    """A pinned thread would share its core with the engine's threads for as long as it lives."""
    code = "import os; from hfray.engines.precision import compile_layer; compiled = compile_layer('CPU', {});"
    code += "print({len(os.sched_getaffinity(int(thread))) for thread in os.listdir('/proc/self/task')})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == str({len(os.sched_getaffinity(0))})
