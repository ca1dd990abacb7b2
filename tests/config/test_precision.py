"""`model.precision` and the options of the libraries that set a number format too."""

from __future__ import annotations

import pytest
import torch

from hfray.config.formats import format_name
from hfray.errors import SettingsError
from tests.conftest import batch_settings

IO = ["input.path=in.jsonl", "output.path=out"]
TORCH, VLLM = "conf=smollm2_cpu", "backend=vllm"
HINT, KV_CACHE = "backend.ov_config.INFERENCE_PRECISION_HINT", "backend.ov_config.KV_CACHE_PRECISION"


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (torch.bfloat16, "bf16"),
        ("torch.float16", "fp16"),
        ("half", "fp16"),
        ("f32", "fp32"),
        ("FLOAT", "fp32"),
        ("u8", "u8"),
        ("auto", "auto"),
    ],
)
def test_names_of_formats(value, name):
    assert format_name(value) == name


def test_names_of_openvinos_types():
    openvino = pytest.importorskip("openvino")
    names = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "u8": "u8"}
    assert {name: format_name(getattr(openvino.Type, name)) for name in names} == names


@pytest.mark.parametrize(
    ("overrides", "asked"),
    [
        ([], "auto"),
        (["model.precision=exact"], "exact"),
        ([TORCH, "model.dtype=bfloat16"], "bf16"),
        ([TORCH, "model.kwargs.dtype=auto"], "auto"),
        ([TORCH, "model.kwargs.torch_dtype=float16"], "fp16"),
        ([VLLM, "backend.options.dtype=half"], "fp16"),
        ([f"{HINT}=f32"], "fp32"),
        ([f"{HINT}=dynamic"], "auto"),
        ([f"{HINT}=f32", "model.precision=exact"], "exact"),
        ([f"{KV_CACHE}=u8"], "auto"),
        ([f"{KV_CACHE}=u8", "model.precision=bf16"], "bf16"),
        ([f"{KV_CACHE}=f32", "model.precision=exact"], "exact"),
        (["backend.weight_format=int8", "model.precision=fp32"], "fp32"),
        ([VLLM, "backend.options.kv_cache_dtype=auto", "model.precision=exact"], "exact"),
    ],
)
def test_what_is_asked_for(overrides, asked):
    assert batch_settings(*IO, *overrides).asked_precision == asked


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.dtype=float16", "model.precision=exact"], "model.dtype=float16 contradicts model.precision=exact"),
        (
            [TORCH, "model.kwargs.dtype=bfloat16", "model.precision=fp16"],
            "model.kwargs.dtype=bfloat16 contradicts model.precision=fp16",
        ),
        (
            [TORCH, "model.kwargs.torch_dtype=auto", "model.precision=fp32"],
            "model.kwargs.torch_dtype=auto contradicts model.precision=fp32",
        ),
        (
            [TORCH, "model.kwargs.dtype=float32", "model.dtype=float16"],
            "model.kwargs.dtype=float32 contradicts model.dtype=float16",
        ),
        ([f"{HINT}=bf16", "model.precision=exact"], f"{HINT}=bf16 contradicts model.precision=exact"),
        ([f"{KV_CACHE}=u8", "model.precision=exact"], f"{KV_CACHE}=u8 contradicts model.precision=exact"),
        (
            ["backend.weight_format=int8", "model.precision=exact"],
            "backend.weight_format=int8 contradicts model.precision=exact",
        ),
        (
            [VLLM, "backend.options.dtype=bfloat16", "model.precision=fp32"],
            "backend.options.dtype=bfloat16 contradicts model.precision=fp32",
        ),
        (
            [VLLM, "backend.options.kv_cache_dtype=fp8", "model.precision=exact"],
            "backend.options.kv_cache_dtype=fp8 contradicts model.precision=exact",
        ),
        (
            [
                "model.precision=exact",
                "workers=[{}, {backend: {name: openvino, ov_config: {KV_CACHE_PRECISION: u8}}}]",
            ],
            f"{KV_CACHE}=u8 contradicts model.precision=exact",
        ),
        (["model.precision=fp8"], "model.precision='fp8'"),
    ],
)
def test_a_contradiction_names_both_keys(overrides, message):
    with pytest.raises(SettingsError) as caught:
        batch_settings(*IO, *overrides)
    assert message in str(caught.value)
