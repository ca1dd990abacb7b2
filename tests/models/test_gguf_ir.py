"""GGUF files that OpenVINO GenAI converts itself: the folder is as good as the one that torch and optimum-intel make."""

from __future__ import annotations

import json

import pytest

from hfray.errors import SettingsError
from hfray.models import gguf, gguf_ir
from hfray.models.folder import check_tokenizer, context_length, kv_values_per_token, stored_end_token_ids
from hfray.models.source import prepare, without_torch
from tests.conftest import batch_settings
from tests.models.test_gguf import metadata

IO = ["input.path=-", "output.path=-"]
TEXTS = [
    "Question: hi\n\nAnswer: Let's 123",
    "2024-05-17: 1,000.50 €  <|im_start|>user\nWho?<|im_end|>\n",
    "naïve 東京 😀\t tabs\r\n   spaces  ",
    "I'LL we'd don't x=1;y=[2]",
]


def write_header(path, architecture: str, first: bool = True):
    from gguf import GGUFWriter

    writer = GGUFWriter(path, architecture)
    if not first:  # the writer adds the architecture before all other entries
        writer.kv_data[0].pop("general.architecture")
        writer.add_context_length(8)
        writer.add_string("general.architecture", architecture)
    writer.add_tokenizer_model("gpt2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(("architecture", "expected"), [("llama", True), ("qwen3", True), ("gpt2", False)])
def test_only_architectures_that_genai_reads_are_converted_without_torch(architecture, expected, tmp_path):
    file = write_header(tmp_path / "model.gguf", architecture)
    assert gguf.architecture(file) == architecture
    assert gguf_ir.can_convert(file) == expected


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + bytes(60), b"GGUF\x03\x00\x00\x00" + b"\xff" * 300])
def test_a_file_without_an_architecture_is_left_to_torch_which_names_the_fault(content, tmp_path):
    (tmp_path / "model.gguf").write_bytes(content)
    assert not gguf_ir.can_convert(tmp_path / "model.gguf")


def test_an_architecture_that_is_not_the_first_entry_is_left_to_torch(tmp_path):
    assert gguf.architecture(write_header(tmp_path / "model.gguf", "llama", first=False)) is None


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], True),
        (["backend.weight_format=fp16"], True),
        (["model.precision=exact"], False),
        (["model.precision=fp32"], True),
        (["backend.weight_format=fp32"], False),
        (["backend.weight_format=int8"], False),
    ],
)
def test_weights_of_other_formats_are_converted_by_torch(overrides, expected, tmp_path):
    file = write_header(tmp_path / "model.gguf", "llama")
    assert without_torch(batch_settings(*IO, "conf=smollm2_openvino", *overrides), file) == expected


def test_the_config_has_the_names_of_transformers():
    sizes = {
        "block_count": 2,
        "embedding_length": 64,
        "feed_forward_length": 128,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
    }
    config = gguf_ir._config(metadata() | {f"llama.{key}": value for key, value in sizes.items()}, tied=True)
    expected = {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_size": 64,
        "head_dim": 16,
        "max_position_embeddings": 2048,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "tie_word_embeddings": True,
    }
    assert {key: config[key] for key in expected} == expected


def test_a_tokenizer_of_unknown_kind_is_refused(tmp_path):
    file = write_header(tmp_path / "model.gguf", "llama")
    reader = gguf.open_gguf(file)
    with pytest.raises(ValueError, match="cannot rebuild the GGUF tokenizer"):
        gguf.check_tokenizer_kind(gguf.metadata_of(reader) | {"tokenizer.ggml.pre": "unheard-of"})


@pytest.mark.model
def test_a_damaged_file_is_named_and_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HFRAY_CACHE", str(tmp_path / "cache"))
    whole = write_header(tmp_path / "whole.gguf", "llama").read_bytes()
    file = tmp_path / "model.gguf"
    file.write_bytes(whole[:-6])
    settings = batch_settings(*IO, "conf=smollm2_openvino", f"model.source={file}")
    with pytest.raises(SettingsError, match=r"model\.gguf.*(corrupt|cannot read)"):
        prepare(settings)
    assert not list((tmp_path / "cache").rglob("*.xml"))


@pytest.mark.model
def test_the_folder_of_the_real_model_is_complete(smollm2, smollm2_ir):
    """Compared with the folder that torch makes of the same file."""
    from transformers import AutoTokenizer

    from hfray.engines.openvino import OpenVINOTokenizer

    for found in (context_length, stored_end_token_ids, kv_values_per_token):
        assert found(smollm2_ir) == found(smollm2)
    assert json.loads((smollm2_ir / "config.json").read_text())["dtype"] == "float16"
    check_tokenizer(smollm2_ir)
    theirs, mine = AutoTokenizer.from_pretrained(smollm2), OpenVINOTokenizer(smollm2_ir)
    for text in TEXTS:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert mine.encode(text, add_special_tokens=False) == ids
        assert mine.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    messages = [{"role": "user", "content": "Hello?"}]
    assert mine.chat(messages) == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


@pytest.mark.model
def test_the_logits_are_those_of_the_folder_that_torch_makes(smollm2, smollm2_ir):
    import numpy as np
    import openvino
    import torch
    from transformers import AutoModelForCausalLM

    from hfray.engines.openvino import OpenVINOTokenizer

    ids = np.array([OpenVINOTokenizer(smollm2_ir).encode(TEXTS[0])])
    compiled = openvino.compile_model(smollm2_ir / gguf_ir.MODEL_FILE, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    inputs = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.arange(ids.shape[1])[None],
        "beam_idx": np.zeros(1, np.int32),
    }
    mine = compiled(inputs)["logits"]
    with torch.inference_mode():
        theirs = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)(
            torch.from_numpy(ids)
        ).logits.numpy()
    assert np.corrcoef(mine.ravel(), theirs.ravel())[0, 1] > 0.99999
    assert np.abs(mine - theirs).max() < 0.1  # the weights are rounded to 16 bits
