"""GGUF files: the magic bytes, the metadata, and the tokenizer built from the metadata."""

from __future__ import annotations

import pytest

from hfray.models import gguf


def byte_level_tokens():
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def metadata(**changes):
    tokens = ["<|endoftext|>", *byte_level_tokens(), "hi"]
    plain = {
        "general.architecture": "llama",
        "llama.context_length": 2048,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": ["h i"],
        "tokenizer.ggml.token_type": [gguf.CONTROL_TOKEN] + [1] * (len(tokens) - 1),
        "tokenizer.ggml.eos_token_id": 0,
    }
    return plain | {key.replace("_", ".", 2) if key.startswith("tokenizer_") else key: v for key, v in changes.items()}


@pytest.mark.parametrize("content", [b"", b"GG", b"not a model"])
def test_a_file_of_another_kind_is_named(tmp_path, content):
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.gguf: not a GGUF file"):
        gguf.check_gguf(tmp_path / "model.gguf")


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + b"\xff" * 20)
    gguf.check_gguf(tmp_path / "model.gguf")
    with pytest.raises(ValueError, match=r"model\.gguf: the GGUF file is corrupt or truncated"):
        gguf.read_metadata(tmp_path / "model.gguf")


def test_metadata_of_a_file_comes_back(tmp_path):
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_context_length(2048)
    writer.add_tokenizer_model("gpt2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    found = gguf.read_metadata(tmp_path / "model.gguf")
    assert (found["llama.context_length"], found["tokenizer.ggml.model"]) == (2048, "gpt2")


def test_the_tokenizer_splits_digits_and_keeps_newlines():
    tokenizer = gguf.build_tokenizer(metadata())
    assert tokenizer.tokenize("hi\n12<|endoftext|>") == ["hi", "Ċ", "1", "2", "<|endoftext|>"]
    assert tokenizer.decode(tokenizer.encode("hi\n\n12")) == "hi\n\n12"
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.model_max_length) == (0, 0, 2048)
    assert tokenizer.all_special_ids == [0]


@pytest.mark.parametrize("change", [{"tokenizer_ggml_model": "llama"}, {"tokenizer_ggml_pre": "unheard-of"}])
def test_a_tokenizer_of_unknown_kind_is_refused(change):
    with pytest.raises(ValueError, match=r"cannot rebuild the GGUF tokenizer.*Hugging Face folder"):
        gguf.build_tokenizer(metadata(**change))
