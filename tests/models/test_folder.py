"""Facts about a model folder, read from its files."""

from __future__ import annotations

import json

import pytest

from hfray.errors import SettingsError
from hfray.models import folder as folders


def write(folder, config, **generation):
    (folder / "config.json").write_text(json.dumps(config))
    if generation:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def test_kinds_of_folders(tmp_path):
    assert not folders.is_ir(tmp_path)
    write(tmp_path, {})
    assert not folders.is_hugging_face(tmp_path)  # a config without weights
    (tmp_path / "model.safetensors").touch()
    assert folders.is_hugging_face(tmp_path)
    (tmp_path / "openvino_model.xml").touch()
    assert folders.is_ir(tmp_path)


def test_a_missing_tokenizer_is_named_with_its_remedy(tmp_path):
    with pytest.raises(SettingsError, match=r"model\.source=org/name: the folder has no tokenizer.*save_pretrained"):
        folders.check_tokenizer(tmp_path, "org/name")
    (tmp_path / "tokenizer.json").touch()
    folders.check_tokenizer(tmp_path)
    (tmp_path / "openvino_model.xml").touch()
    (tmp_path / "openvino_tokenizer.xml").touch()
    with pytest.raises(SettingsError, match=r"openvino_detokenizer\.xml is missing.*jobs\.export"):
        folders.check_tokenizer(tmp_path)
    (tmp_path / "openvino_detokenizer.xml").touch()
    folders.check_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 4096}}, 4096),
        ({"seq_length": None}, None),
        ({}, None),
    ],
)
def test_context_length(tmp_path, config, length):
    assert folders.context_length(write(tmp_path, config)) == length


def test_kv_values_per_token(tmp_path):
    grouped = {"num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 64}
    assert folders.kv_values_per_token(write(tmp_path, grouped)) == 2 * 2 * 2 * 8
    assert folders.kv_values_per_token(write(tmp_path, {"n_layer": 2, "n_head": 4, "n_embd": 32})) == 2 * 2 * 32
    assert folders.kv_values_per_token(write(tmp_path, {"n_layer": 2})) is None


@pytest.mark.parametrize(
    ("candidates", "ids"),
    [((), set()), ((None, 3), {3}), (([1, 2], 3), {1, 2}), (([], 3), {3}), ((0, 3), {0}), (({5},), {5})],
)
def test_end_token_ids(candidates, ids):
    assert folders.end_token_ids(*candidates) == ids


def test_stored_end_token_ids(tmp_path):
    assert folders.stored_end_token_ids(tmp_path) == set()
    assert folders.stored_end_token_ids(write(tmp_path, {"eos_token_id": 7})) == {7}
    assert folders.stored_end_token_ids(write(tmp_path, {"eos_token_id": 7}, eos_token_id=[8, 9])) == {8, 9}


def test_weight_bytes(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(100))
    (tmp_path / "pytorch_model.bin").write_bytes(bytes(999))  # a second copy of the same weights
    assert folders.weight_bytes(tmp_path, "float32") == 100  # the stored type is unknown
    write(tmp_path, {"torch_dtype": "float32"})
    assert folders.weight_bytes(tmp_path, "bfloat16") == 50
    assert folders.size(tmp_path) == 1099 + len((tmp_path / "config.json").read_bytes())


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_the_weights_say_their_type_if_the_config_does_not(tmp_path, kind):
    """As with bigscience/bloom-1b7, whose weights are in float16."""
    import torch
    from safetensors.torch import save_file

    weights = {
        "first.bias": torch.zeros(4, dtype=torch.float32),
        "large.weight": torch.zeros(8, 8, dtype=torch.float16),
        "positions": torch.zeros(256, dtype=torch.int64),
    }
    write(tmp_path, {"model_type": "bloom"})
    assert folders.stored_dtype(tmp_path) is None
    if kind == "bin":
        torch.save(weights, tmp_path / "pytorch_model.bin")
    else:
        save_file(weights, tmp_path / "model.safetensors")
    assert folders.stored_dtype(tmp_path) == "float16"
    stored = next(tmp_path.glob(f"*.{kind}")).stat().st_size
    assert folders.weight_bytes(tmp_path, "float32") == 2 * stored
    write(tmp_path, {"text_config": {"torch_dtype": "bfloat16"}})
    assert folders.stored_dtype(tmp_path) == "bfloat16"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_file_that_holds_no_weights_has_no_type(tmp_path, name):
    (tmp_path / name).write_bytes(b"not weights, and no header either")
    assert folders.stored_dtype(tmp_path) is None


def test_channels_and_model_type(tmp_path):
    write(tmp_path, {"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "d_ff": None})
    assert folders.channels(tmp_path) == [576, 1536]
    assert folders.model_type(tmp_path) == "llama"
