"""What a local model folder holds, read off its files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

IR_FILES = ("openvino_model.xml", "openvino_language_model.xml", "openvino_decoder_model.xml")
TOKENIZER_FILES = ("openvino_tokenizer.xml", "openvino_detokenizer.xml")  # of an IR folder
WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json", "*.bin.index.json")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "sentencepiece.bpe.model")
# The name differs by architecture: Llama and most others, GPT-2 and GPT-J, BLOOM, MPT, T5-like.
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_seq_len")


def is_ir(folder: Path) -> bool:
    """Whether the folder is an OpenVINO IR."""
    return any((folder / name).exists() for name in IR_FILES)


def is_hugging_face(folder: Path) -> bool:
    """Whether the folder holds a transformers model: its config and weights."""
    return (folder / "config.json").exists() and any(any(folder.glob(pattern)) for pattern in WEIGHTS)


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder holds any of the files that a transformers tokenizer is made from."""
    return any((folder / name).exists() for name in TOKENIZERS)


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json`, or an empty dict."""
    return _read_json(folder / "config.json")


def context_length(folder: Path) -> int | None:
    """Most tokens of prompt and completion together, or None where the model's config sets no bound."""
    config = read_config(folder)
    for source in (config, config.get("text_config") or {}):
        for key in CONTEXT_KEYS:
            if isinstance(source.get(key), int) and source[key] > 0:
                return source[key]
    return None


def kv_values_per_token(folder: Path) -> int | None:
    """How many numbers the KV cache holds for a token, or None where the config does not tell."""
    config = read_config(folder)
    config = config.get("text_config") or config

    def first(*keys: str) -> int | None:
        return next((config[key] for key in keys if isinstance(config.get(key), int) and config[key] > 0), None)

    layers, heads = first("num_hidden_layers", "n_layer", "num_layers"), first("num_attention_heads", "n_head")
    hidden, kv_heads = first("hidden_size", "n_embd", "d_model"), first("num_key_value_heads")
    if not (layers and heads and hidden):
        return None
    return 2 * layers * (kv_heads or heads) * (first("head_dim") or hidden // heads)


def end_token_ids(folder: Path) -> set[int]:
    """The ids that end a completion, as the generation config has them, or else the model's config."""
    for config in (_read_json(folder / "generation_config.json"), read_config(folder)):
        ids = config.get("eos_token_id")
        if ids is not None:
            return {ids} if isinstance(ids, int) else set(ids)
    return set()


def weight_bytes(folder: Path, dtype: str) -> int:
    """Bytes that the weights take in memory as `dtype` ("float32", "bfloat16", ...), by the size of their files."""
    kinds = ("*.safetensors", "*.bin")
    stored = next((total for kind in kinds if (total := sum(f.stat().st_size for f in folder.glob(kind)))), 0)
    config = read_config(folder)
    width = {"float32": 4, "float16": 2, "bfloat16": 2}
    return stored * width[dtype] // width.get(config.get("dtype") or config.get("torch_dtype"), width[dtype])


def model_type(folder: Path) -> str:
    """The architecture's name as in `config.json`, or ""."""
    return read_config(folder).get("model_type", "")


def channels(folder: Path) -> list[int]:
    """Input widths of the model's linear layers, as far as the config tells: what weight groups must divide."""
    config = read_config(folder)
    keys = ("hidden_size", "n_embd", "d_model", "intermediate_size", "n_inner", "d_ff", "ffn_dim")
    return sorted({config[key] for key in keys if isinstance(config.get(key), int)})


def size(folder: Path) -> int:
    """Bytes of all files in the folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}
