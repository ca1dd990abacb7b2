"""What hfray tells vLLM, without vLLM."""

from __future__ import annotations

import json

import pytest

from hfray.engines.vllm_settings import check_quantized, engine_arguments

ON_GPU = {"on_cpu": False, "capacity": None, "kv_cache_gib": None, "gpu_share": 1.0, "memory": 0.92}


def test_vllm_chooses_how_many_sequences_and_tokens_a_step_takes():
    given = engine_arguments(**ON_GPU)
    assert given["disable_log_stats"] is True
    assert given.keys() == {"generation_config", "disable_log_stats", "worker_extension_cls"}
    assert engine_arguments(**ON_GPU | {"capacity": 7})["max_num_seqs"] == 7


def test_the_size_of_the_kv_cache():
    assert engine_arguments(**ON_GPU | {"kv_cache_gib": 1.5})["kv_cache_memory_bytes"] == 3 << 29
    assert engine_arguments(**ON_GPU | {"on_cpu": True})["kv_cache_memory_bytes"] == 4 << 30


def test_workers_that_share_a_gpu_divide_vllms_memory():
    assert engine_arguments(**ON_GPU | {"gpu_share": 0.25})["gpu_memory_utilization"] == pytest.approx(0.23)
    assert "gpu_memory_utilization" not in engine_arguments(**ON_GPU | {"gpu_share": 0.25, "on_cpu": True})


def test_the_extension_of_vllms_workers_can_be_imported():
    module, _, name = engine_arguments(**ON_GPU)["worker_extension_cls"].rpartition(".")
    assert hasattr(getattr(__import__(module, fromlist=[name]), name), "hfray_precision")


@pytest.mark.parametrize("method", ["fp8", "awq", "gptq"])
def test_quantized_weights_are_not_fp32(tmp_path, method):
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": method}}))
    check_quantized(tmp_path, "auto")
    check_quantized(tmp_path, "bf16")
    for precision in ("exact", "fp32"):
        with pytest.raises(ValueError, match=rf"model.precision={precision}: .*quantized \({method}\)"):
            check_quantized(tmp_path, precision)
