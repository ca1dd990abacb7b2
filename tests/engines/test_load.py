"""From settings to an engine."""

from __future__ import annotations

import sys

import pytest

from hfray.engines import load
from hfray.engines.fake import FakeEngine
from hfray.engines.load import load_engine, torch_device
from tests.conftest import batch_settings


def settings_of(*overrides):
    return batch_settings("input.path=-", "output.path=-", *overrides)


def test_the_backends_settings_reach_the_engine():
    engine = load_engine(settings_of("conf=fake", "backend.batch_size=3", "backend.context_length=99"))
    assert isinstance(engine, FakeEngine)
    assert (engine.capacity, engine.context_length) == (3, 99)


def test_a_transformers_model_is_loaded_from_its_prepared_folder(tiny_llama):
    from hfray.engines.torch.causal import TransformersEngine

    engine = load_engine(settings_of("conf=smollm2_cpu", "backend.batch_size=5"), folder=tiny_llama)
    assert isinstance(engine, TransformersEngine)
    assert (engine.capacity, engine.context_length) == (5, 128)


@pytest.mark.parametrize("index", [None, -1])
def test_no_index_is_the_cpu(index):
    assert torch_device(index) == "cpu"


@pytest.mark.parametrize(
    ("index", "variables", "device"),
    [(1, {}, "cuda:1"), (1, {"RAY_JOB_ID": "1"}, "cuda:1"), (5, {"RAY_JOB_ID": "1", "HFRAY_WORKER": "1"}, "cuda:0")],
)
def test_only_in_hfrays_own_workers_every_index_is_the_first_gpu(monkeypatch, index, variables, device):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    set_only(monkeypatch, variables)
    assert torch_device(index) == device


def set_only(monkeypatch, variables):
    for name in ("HFRAY_WORKER", "RAY_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    set_only(monkeypatch, {})
    with pytest.raises(ValueError, match=r"device.index=2: no such GPU.*sees 2.*device=cpu"):
        torch_device(2)


@pytest.mark.parametrize(
    ("given", "device", "count", "visible"),
    [
        (None, "cuda:1", 1, "1"),
        ("4,7", "cuda:1", 1, "7"),
        ("", "cuda:0", 1, "0"),
        (None, "cuda:0", 2, "0,1"),
        ("4,7", "cuda:0", 2, "4,7"),
        ("GPU-a,GPU-b,GPU-c", "cuda:1", 2, "GPU-b,GPU-c"),
    ],
)
def test_vllm_sees_its_gpus_among_the_visible_ones(monkeypatch, given, device, count, visible):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert load._visible(device, count) == visible


def test_too_few_gpus_for_vllm_are_told(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    with pytest.raises(
        ValueError, match=r"backend.options: the engine runs on 4 GPUs, and 2 are visible.*workers.gpus"
    ):
        load._visible("cuda:0", 4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=summarization"], "task=summarization: backend=vllm"),
        (["+model.kwargs.a=1"], "model.kwargs: .*backend.options"),
        ([], r"backend=vllm: vLLM cannot be imported.*hfray\[gpu\]"),
    ],
)
def test_what_vllm_cannot_do_is_refused(monkeypatch, tiny_llama, overrides, message):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # restored after the test, because the engine sets it
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.delitem(sys.modules, "hfray.engines.vllm", raising=False)
    with pytest.raises(ValueError, match=message):
        load_engine(settings_of("conf=smollm2_cpu", "backend=vllm", *overrides), folder=tiny_llama)
