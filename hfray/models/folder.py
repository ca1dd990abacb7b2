"""What a local model folder contains, read from its files alone."""

from __future__ import annotations

import json
import math
import pickle
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hfray.errors import SettingsError

IR_FILES = ("openvino_model.xml", "openvino_language_model.xml", "openvino_decoder_model.xml")
TOKENIZER_FILES = ("openvino_tokenizer.xml", "openvino_detokenizer.xml")  # in an IR folder
WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json", "*.bin.index.json")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "sentencepiece.bpe.model")
# The name differs by architecture: Llama and most others, GPT-2 and GPT-J, BLOOM, MPT, T5-like.
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_seq_len")
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
SAFETENSORS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # types of floating-point weights


def is_ir(folder: Path) -> bool:
    """Whether the folder is an OpenVINO IR."""
    return any((folder / name).exists() for name in IR_FILES)


def is_hugging_face(folder: Path) -> bool:
    """Whether the folder contains a transformers model: its config and its weights."""
    return (folder / "config.json").exists() and any(any(folder.glob(pattern)) for pattern in WEIGHTS)


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder contains any file from which transformers can build a tokenizer."""
    return any((folder / name).exists() for name in TOKENIZERS)


def check_tokenizer(folder: Path, source: str | None = None) -> None:
    """Raise SettingsError if the folder has no tokenizer of its kind.

    Args:
        folder: a Hugging Face folder or an OpenVINO IR folder.
        source: the `model.source` to name in the message; the folder itself by default.
    """
    if is_ir(folder):
        missing = [name for name in TOKENIZER_FILES if not (folder / name).exists()]
        found = f"{missing[0]} is missing" if missing else None
        remedy = (
            "Export the model again with `python -m jobs.export`, "
            "or run `convert_tokenizer` of openvino-tokenizers on it."
        )
    else:
        found = None if has_tokenizer(folder) else "it contains no tokenizer.json, vocab.txt or similar file"
        remedy = "Save the model's tokenizer into it with `tokenizer.save_pretrained(folder)`."
    if found is not None:
        raise SettingsError(f"model.source={source or folder}: the folder has no tokenizer ({found}). {remedy}")


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json`, or an empty dict."""
    return _read_json(folder / "config.json")


def context_length(folder: Path) -> int | None:
    """The maximum number of prompt and completion tokens together; None if the model's config sets no limit."""
    config = read_config(folder)
    for source in (config, config.get("text_config") or {}):
        for key in CONTEXT_KEYS:
            if isinstance(source.get(key), int) and source[key] > 0:
                return source[key]
    return None


def kv_values_per_token(folder: Path) -> int | None:
    """How many numbers the KV cache stores per token; None if the config does not say."""
    config = read_config(folder)
    config = config.get("text_config") or config

    def first(*keys: str) -> int | None:
        return next((config[key] for key in keys if isinstance(config.get(key), int) and config[key] > 0), None)

    layers, heads = first("num_hidden_layers", "n_layer", "num_layers"), num_attention_heads(config)
    hidden, kv_heads = first("hidden_size", "n_embd", "d_model"), first("num_key_value_heads")
    if not (layers and heads and hidden):
        return None
    return 2 * layers * (kv_heads or heads) * (first("head_dim") or hidden // heads)


def num_attention_heads(config: Mapping[str, Any]) -> int | None:
    """The attention heads of one layer, from `config.json`; None if it does not say."""
    config = config.get("text_config") or config
    found = (config.get(key) for key in ("num_attention_heads", "n_head"))
    return next((heads for heads in found if isinstance(heads, int) and heads > 0), None)


def end_token_ids(*candidates: int | Iterable[int] | None) -> set[int]:
    """The end-of-text token ids: the first candidate that names any, as a set.

    Each candidate is an `eos_token_id` as transformers writes it: one id, several ids, or None.
    """
    for ids in candidates:
        found = set() if ids is None else {ids} if isinstance(ids, int) else set(ids)
        if found:
            return found
    return set()


def stored_end_token_ids(folder: Path) -> set[int]:
    """The end-of-text token ids in the folder's generation config, or else in its model config."""
    generation = _read_json(folder / "generation_config.json")
    return end_token_ids(generation.get("eos_token_id"), read_config(folder).get("eos_token_id"))


def stored_dtype(folder: Path) -> str | None:
    """torch's name of the checkpoint's floating-point type; None if the files do not say.

    The config names it, or else the weights themselves do: the config of bigscience/bloom-1b7, for example, does not,
    and its weights are in float16.
    """
    config = read_config(folder)
    for source in (config, config.get("text_config") or {}):
        named = source.get("dtype") or source.get("torch_dtype")
        if named:
            return str(named).removeprefix("torch.")
    for file in sorted(folder.glob("*.safetensors")):
        return _safetensors_dtype(file)
    return _bin_dtype(next(iter(sorted(folder.glob("*.bin"))), None))


def _safetensors_dtype(file: Path) -> str | None:
    """The type of most floating-point values of a safetensors file: 8 bytes of length, then a header in JSON."""
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 0 < length < file.stat().st_size:
            return None
        header = json.loads(stream.read(length))
    sizes = Counter[str]()
    for tensor in header.values():
        if tensor.get("dtype") in SAFETENSORS:
            sizes[SAFETENSORS[tensor["dtype"]]] += math.prod(tensor["shape"])
    return sizes.most_common(1)[0][0] if sizes else None


def _bin_dtype(file: Path | None) -> str | None:
    """The type of most floating-point values of a file of PyTorch's own format; the values are not read."""
    if file is None:
        return None
    import torch

    try:
        tensors = torch.load(file, map_location="meta", mmap=True, weights_only=True)
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError):  # not weights, or too old a format
        return None
    sizes = Counter[str]()
    for tensor in tensors.values():
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
            sizes[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    return sizes.most_common(1)[0][0] if sizes else None


def weight_bytes(folder: Path, dtype: str) -> int:
    """How many bytes the weights take in memory as `dtype` ("float32", "bfloat16", ...), from their file sizes."""
    kinds = ("*.safetensors", "*.bin")
    stored = next((total for kind in kinds if (total := sum(f.stat().st_size for f in folder.glob(kind)))), 0)
    return stored * BYTES[dtype] // BYTES.get(str(stored_dtype(folder)), BYTES[dtype])


def model_type(folder: Path) -> str:
    """The architecture's name as in `config.json`, or ""."""
    return read_config(folder).get("model_type", "")


def channels(folder: Path) -> list[int]:
    """The input widths of the linear layers that the config names; weight groups must divide each of them."""
    config = read_config(folder)
    keys = ("hidden_size", "n_embd", "d_model", "intermediate_size", "n_inner", "d_ff", "ffn_dim")
    return sorted({config[key] for key in keys if isinstance(config.get(key), int)})


def size(folder: Path) -> int:
    """The total size of all files in the folder, in bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
