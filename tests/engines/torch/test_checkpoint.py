"""Model folders as transformers loads them."""

from __future__ import annotations

import pytest

from hfray.engines.torch import checkpoint
from hfray.engines.torch.checkpoint import check_fits, check_placement, load_model, load_tokenizer, may_offload
from hfray.models.folder import weight_bytes


def test_the_tokenizer_takes_odd_text(tiny_gpt2):
    tokenizer = load_tokenizer(tiny_gpt2)
    assert tokenizer.encode("") == []
    assert tokenizer.decode(tokenizer.encode("lone \ud800 surrogate")) == "lone ? surrogate"
    assert tokenizer.chat([{"role": "user", "content": "Hi"}]) == "user: Hi\nassistant:"


def test_a_model_too_large_for_its_gpu_is_told_by_its_size(tiny_gpt2):
    weights = weight_bytes(tiny_gpt2, "float32")
    assert weights == pytest.approx(2 * weight_bytes(tiny_gpt2, "bfloat16"), abs=1)
    check_fits(weights, [2 * weights], "model.source=here:")
    with pytest.raises(ValueError, match=r"model.source=here: its weights take 20.0 GiB.*8.0 GiB free.*workers.gpus=3"):
        check_fits(20 << 30, [8 << 30], "model.source=here:")


def test_a_model_too_large_for_several_gpus_is_told_how_many_it_needs():
    check_fits(20 << 30, [8 << 30] * 3, "model.source=here:")
    with pytest.raises(ValueError, match=r"take 20.0 GiB, and the 2 GPUs have 16.0 GiB free.*workers.gpus=3"):
        check_fits(20 << 30, [8 << 30] * 2, "model.source=here:")


@pytest.mark.parametrize(
    ("device_map", "kwargs", "allowed"),
    [
        (None, {}, False),
        ("auto", {}, False),
        ({"": 0}, {}, False),
        ({"head": 0, "layers": "cpu"}, {}, True),
        ({"head": 0, "layers": "disk"}, {}, True),
        ("auto", {"offload_folder": "here"}, True),
        ("auto", {"max_memory": {0: "8GiB", "cpu": "60GiB"}}, True),
    ],
)
def test_layers_leave_the_gpus_only_if_the_user_says_so(device_map, kwargs, allowed):
    assert may_offload(device_map, kwargs) is allowed


@pytest.mark.parametrize("placed", [{}, {"": "cpu"}, {"wte": "cpu", "h.0": "cpu"}, {"wte": 0, "h.0": 1}])
def test_a_model_in_one_kind_of_memory_is_accepted(placed):
    check_placement(placed, "device.map=auto")


def test_a_silent_offload_is_refused():
    placed = {"wte": 0, "h.0": 0, "h.1": "cpu", "h.2": "disk"}
    with pytest.raises(ValueError, match=r"device.map=auto: .*2 of 4 parts .* h.1 first.*workers.gpus.*offload_folder"):
        check_placement(placed, "device.map=auto")


def test_a_map_that_names_the_disk_is_loaded_and_a_silent_one_is_not(tiny_llama, tmp_path, monkeypatch):
    """accelerate itself places these layers; "cpu" stands for the GPU that is not here."""
    parts = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    device_map = parts | {"lm_head": "cpu"}
    kwargs = {"offload_folder": str(tmp_path)}
    model = load_model(tiny_llama, device_map=device_map, model_kwargs=kwargs)
    assert model.hf_device_map["model.layers"] == "disk"
    monkeypatch.setattr(checkpoint, "AWAY", ("disk",))
    monkeypatch.setattr(checkpoint, "may_offload", lambda *_: False)
    with pytest.raises(ValueError, match=r"1 of 5 parts"):
        load_model(tiny_llama, device_map=device_map, model_kwargs=kwargs)
