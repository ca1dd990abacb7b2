"""Convert a GGUF file to a Hugging Face model folder.

transformers loads the weights of a GGUF file correctly but rebuilds byte-level BPE tokenizers wrongly: each newline of
a SmolLM2 prompt becomes an end-of-text token. This module builds the tokenizer from the file's own metadata instead.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PreTrainedTokenizerFast

GGUF_MAGIC = b"GGUF"
STRING = 8  # the type of a text value
CONTROL_TOKEN = 3  # tokenizer.ggml.token_type: control tokens (<|im_start|>, ...) are special, never text
USER_DEFINED_TOKEN = 4
# Pre-tokenizers known to split off every digit and then to apply GPT-2's regular expression.
DIGIT_SPLITTING = {"smollm", "starcoder", "refact", "command-r", "codeshell"}


def check_gguf(path: Path) -> None:
    """Raise ValueError, naming the file, unless the file starts with the GGUF magic bytes."""
    with open(path, "rb") as file:
        magic = file.read(4)
    if magic != GGUF_MAGIC:
        raise ValueError(
            f"model.source={path}: not a GGUF file (it starts with {magic!r}, not {GGUF_MAGIC!r}). "
            "Download it again, or use another file."
        )


def architecture(path: Path) -> str | None:
    """The model's architecture: "llama", "qwen2", ... None if it is not the first entry, where every writer puts it.

    Reading all metadata takes seconds, because the tokenizer is part of it.
    """
    key = b"general.architecture"
    with open(path, "rb") as file:
        start = file.read(256)
    found = start[24:].removeprefix(struct.pack("<Q", len(key)) + key + struct.pack("<I", STRING))
    if len(found) == len(start[24:]) or len(found) < 8:
        return None
    (length,) = struct.unpack_from("<Q", found)
    return found[8 : 8 + length].decode("utf-8", "replace")


def read_metadata(path: Path) -> dict[str, Any]:
    """The file's key-value metadata; see `metadata_of`. Raises ValueError for a damaged file."""
    return metadata_of(open_gguf(path))


def metadata_of(reader: GGUFReader) -> dict[str, Any]:
    """Key-value metadata (tokenizer, context length, architecture, ...), without the tensors."""
    return {key: field.contents() for key, field in reader.fields.items()}


def open_gguf(path: Path) -> GGUFReader:
    """Open a GGUF file. Raises ValueError, naming the file, if it is damaged."""
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except Exception as error:  # the reader raises various numpy errors on a damaged file
        raise ValueError(
            f"model.source={path}: the GGUF file is corrupt or truncated ({error}). Download it again."
        ) from error


def check_tokenizer_kind(metadata: dict[str, Any]) -> str:
    """The file's pre-tokenizer. Raises ValueError unless the tokenizer is known to be rebuilt exactly."""
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or pre not in DIGIT_SPLITTING | {"gpt-2", "default"}:
        raise ValueError(
            f"model.source: cannot rebuild the GGUF tokenizer {kind!r} with pre-tokenizer {pre!r} exactly. "
            "Use the model's Hugging Face folder or hub id instead."
        )
    return pre


def build_tokenizer(metadata: dict[str, Any]) -> PreTrainedTokenizerFast:
    """A `PreTrainedTokenizerFast` from GGUF metadata. Only byte-level BPE is supported (`tokenizer.ggml.model = gpt2`)."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pre = check_tokenizer_kind(metadata)
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if pre in DIGIT_SPLITTING else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    for token, token_type in zip(tokens, metadata["tokenizer.ggml.token_type"], strict=True):
        if token_type in (CONTROL_TOKEN, USER_DEFINED_TOKEN):
            added = AddedToken(token, special=token_type == CONTROL_TOKEN, normalized=False)
            (tokenizer.add_special_tokens if token_type == CONTROL_TOKEN else tokenizer.add_tokens)([added])

    def named(key: str) -> str | None:
        token_id = metadata.get(f"tokenizer.ggml.{key}_token_id")
        return None if token_id is None else tokens[token_id]

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=named("bos"),
        eos_token=named("eos"),
        unk_token=named("unknown"),
        pad_token=named("padding") or named("eos"),
        chat_template=metadata.get("tokenizer.chat_template"),
        model_max_length=metadata.get(f"{metadata['general.architecture']}.context_length", 1 << 30),
        clean_up_tokenization_spaces=False,
    )


def convert(source: Path, folder: Path) -> None:
    """Write the model in GGUF file `source` as a Hugging Face folder (fp32 weights, config, tokenizer)."""
    check_gguf(source)
    metadata = read_metadata(source)  # before the slow imports: a damaged file is refused at once
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = build_tokenizer(metadata)
    try:
        model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    except Exception as error:
        raise ValueError(f"model.source={source}: transformers cannot load this GGUF file: {error}") from error
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
