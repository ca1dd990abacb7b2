"""Loading: the weights are loaded once, on the engine's device, with the arguments for the hub."""

from __future__ import annotations

import pickle

import pytest
import transformers

from hfray.engines.precision import cpu_computes_bf16
from hfray.errors import SettingsError
from hfray.langchain.llm import HuggingFacePipeline
from hfray.langchain.loading import openvino_settings, transformers_pipeline, transformers_settings
from tests.conftest import batch_settings

GREEDY = {"max_new_tokens": 4, "do_sample": False}


def test_the_weights_are_loaded_once(tiny_gpt2, monkeypatch):
    from hfray.engines.torch.causal import TransformersEngine

    loads, engines = [], []
    load, start = transformers.AutoModelForCausalLM.from_pretrained, TransformersEngine.__init__
    monkeypatch.setattr(
        transformers.AutoModelForCausalLM, "from_pretrained", lambda *a, **k: loads.append(a) or load(*a, **k)
    )
    monkeypatch.setattr(TransformersEngine, "__init__", lambda s, *a, **k: engines.append(s) or start(s, *a, **k))
    llm = HuggingFacePipeline.from_model_id(str(tiny_gpt2), "text-generation", pipeline_kwargs=GREEDY)
    assert len(loads) == len(engines) == 1
    assert isinstance(llm.pipeline, transformers.TextGenerationPipeline)
    assert llm.pipeline.model is llm._local.model
    assert llm.pipeline.tokenizer is llm._local.tokenizer.hf
    assert llm.pipeline("Hello")[0]["generated_text"] == llm.invoke("Hello")


def test_the_pipeline_stays_on_the_engines_device(tiny_gpt2, monkeypatch):
    """transformers moves a model to the first GPU if nobody names a device."""
    devices = []
    make = transformers.pipeline
    monkeypatch.setattr("transformers.pipeline", lambda *a, **k: devices.append(k.get("device")) or make(*a, **k))
    llm = HuggingFacePipeline.from_model_id(str(tiny_gpt2), "text-generation", device=-1)
    llm.pipeline.model.hf_device_map = {"": "cpu"}  # as accelerate does, which has placed the model already
    transformers_pipeline(llm._local.loop.engine, GREEDY)
    assert devices == [llm.pipeline.model.device, None]


@pytest.mark.parametrize("batch_size", [None, 2, 500])
def test_an_explicit_batch_size_is_a_cap(tiny_gpt2, batch_size):
    llm = HuggingFacePipeline.from_model_id(str(tiny_gpt2), "text-generation", batch_size=batch_size)
    assert llm._local.loop.engine.capacity == (2 if batch_size == 2 else 32)
    assert llm.batch_size == (batch_size or 4)
    options = {} if batch_size is None else {"batch_size": batch_size}
    around = HuggingFacePipeline(pipeline=llm.pipeline, **options)
    assert around._local.loop.engine.capacity == (2 if batch_size == 2 else 32)


@pytest.mark.parametrize("backend", ["default", "openvino"])
def test_the_hub_call_gets_token_cache_and_offline_mode(monkeypatch, backend, tmp_path):
    import huggingface_hub

    seen = {}

    def download(source, **options):
        seen.update(options, source=source)
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    hub = {"token": "hf_x", "cache_dir": str(tmp_path), "local_files_only": True}
    with pytest.raises(SettingsError, match="org/gated"):
        HuggingFacePipeline.from_model_id("org/gated", "text-generation", backend=backend, model_kwargs=hub)
    assert {"source": "org/gated", **hub}.items() <= seen.items()


def test_settings_of_the_engine():
    settings = transformers_settings("a/b", "translation", {"revision": "v1", "torch_dtype": "float16"}, 0, None)
    assert (settings.model.source, settings.model.revision, settings.device.index) == ("a/b", "v1", 0)
    assert (settings.model.kwargs, settings.model.precision) == ({"dtype": "float16"}, "auto")
    settings = openvino_settings("a/b", "text-generation", {"ov_config": {"A": "1"}, "load_in_8bit": True}, -1, None)
    assert (settings.backend.weight_format, settings.backend.ov_config, settings.device.name) == (
        "int8",
        {"A": "1"},
        "CPU",
    )
    loading = {"devise": "CPU"}
    with pytest.raises(ValueError, match="devise"):
        openvino_settings("a/b", "text-generation", loading, -1, None)
    assert loading == {"devise": "CPU"}  # the caller's dictionary is left alone


@pytest.mark.parametrize(
    ("loading", "precision", "kwargs", "asked"),
    [
        ({}, None, {"dtype": "auto"}, "auto"),  # the checkpoint's own, as in langchain-huggingface
        ({}, "auto", {}, "auto"),
        ({}, "exact", {}, "exact"),
        ({"dtype": "bfloat16"}, None, {"dtype": "bfloat16"}, "bf16"),
        ({"torch_dtype": "float32"}, "exact", {"dtype": "float32"}, "exact"),
    ],
)
def test_the_precision_of_the_engine(loading, precision, kwargs, asked):
    settings = transformers_settings("a/b", "text-generation", loading, None, None, precision)
    assert (settings.model.kwargs, settings.asked_precision) == (kwargs, asked)
    settings = openvino_settings("a/b", "text-generation", {}, None, None, precision)
    assert settings.model.precision == (precision or "auto")


@pytest.mark.parametrize(("device", "device_map"), [(0, None), (None, "auto")])
@pytest.mark.parametrize("loading", [{}, {"torch_dtype": "float16"}])
def test_on_a_gpu_the_precision_is_that_of_a_job(device, device_map, loading):
    settings = transformers_settings("a/b", "text-generation", loading, device, device_map)
    place = [f"device.index={device}", f"device.map={device_map or 'null'}"] if device == 0 else ["device=auto"]
    given = [f"+model.kwargs.dtype={loading['torch_dtype']}"] if loading else []
    job = batch_settings("input.path=-", "output.path=-", "conf=smollm2_cpu", *place, *given)
    assert settings.model.kwargs == job.model.kwargs
    assert settings.asked_precision == job.asked_precision


def test_a_dtype_that_contradicts_the_precision_is_refused(tiny_gpt2):
    options = {"model_id": str(tiny_gpt2), "task": "text-generation", "precision": "exact"}
    with pytest.raises(ValueError, match=r"model\.kwargs\.dtype=bfloat16 contradicts model\.precision=exact"):
        HuggingFacePipeline.from_model_id(**options, model_kwargs={"torch_dtype": "bfloat16"})
    with pytest.raises(ValueError, match=r"KV_CACHE_PRECISION=u8 contradicts model\.precision=exact"):
        HuggingFacePipeline.from_model_id(
            **options, backend="openvino", model_kwargs={"ov_config": {"KV_CACHE_PRECISION": "u8"}}
        )


@pytest.mark.parametrize("precision", [None, "auto", "exact", "bf16"])
def test_the_model_is_loaded_in_the_precision(tiny_gpt2, precision):
    llm = HuggingFacePipeline.from_model_id(str(tiny_gpt2), "text-generation", precision=precision)
    expected = {"auto": "bf16" if cpu_computes_bf16() else "fp32", "bf16": "bf16"}.get(precision, "fp32")
    assert llm._local.loop.engine.precision == expected
    assert llm._identifying_params.get("precision") == precision  # part of the key of LangChain's cache
    again = pickle.loads(pickle.dumps(llm))
    assert again._local.loop.engine.precision == expected


def test_the_size_check_counts_the_dtype_of_model_kwargs(tiny_gpt2):
    import torch

    from hfray.engines.torch.checkpoint import loaded_dtype

    assert loaded_dtype(tiny_gpt2, "bfloat16", {}) == "bfloat16"
    assert loaded_dtype(tiny_gpt2, "bfloat16", {"dtype": "auto"}) == "float32"  # the checkpoint's own
    assert loaded_dtype(tiny_gpt2, "bfloat16", {"torch_dtype": torch.float16}) == "float16"


def test_a_model_that_is_too_large_in_its_own_dtype_is_refused(tiny_gpt2, monkeypatch):
    from hfray.engines.torch import checkpoint
    from hfray.engines.torch.checkpoint import load_model
    from hfray.models.folder import weight_bytes

    half = weight_bytes(tiny_gpt2, "bfloat16")
    monkeypatch.setattr(checkpoint, "free_bytes", lambda device: int(half * 1.5))
    with pytest.raises(ValueError, match="in float32 its weights take"):
        load_model(tiny_gpt2, device="cuda:0", precision="bf16", model_kwargs={"dtype": "auto"})


@pytest.mark.parametrize(
    "options",
    [{"backend": "openvino", "device": 0, "model_kwargs": {"devise": "CPU"}}, {"backend": "ipex", "device": -2}],
)
def test_warnings_name_the_line_of_the_user(options, tiny_gpt2):
    with (
        pytest.warns(UserWarning, match=r"through: `model_kwargs`|no longer exists") as caught,
        pytest.raises(ValueError),
    ):
        HuggingFacePipeline.from_model_id(str(tiny_gpt2), "text-generation", **options)
    assert caught[0].filename == __file__
