"""Convert a GGUF file to an OpenVINO IR folder without torch: OpenVINO GenAI reads the file and writes the folder.

GenAI rounds the zero points of 4-bit weights and refuses 32-bit weights. Therefore this module first writes the
weights as 16-bit floats to a GGUF file of its own.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfray.models.folder import TOKENIZER_FILES
from hfray.models.gguf import architecture, check_tokenizer_kind, metadata_of, open_gguf

if TYPE_CHECKING:
    from gguf import GGUFReader

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
MODEL_FILE = "openvino_model.xml"
FP16_FILE = 1  # the value of general.file_type


def can_convert(source: Path) -> bool:
    """Whether GenAI reads the architecture of this GGUF file."""
    return architecture(source) in ARCHITECTURES


def convert(source: Path, folder: Path) -> None:
    """Write the model in GGUF file `source` as an IR folder with 16-bit weights, tokenizer and configs.

    Raises:
        ValueError: the file is damaged, or OpenVINO GenAI cannot read it; the message names the file.
    """
    import openvino_genai

    reader = open_gguf(source)
    metadata = metadata_of(reader)
    check_tokenizer_kind(metadata)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".weights-") as temporary:
        file = Path(temporary) / "model.gguf"
        _write_fp16(reader, file)
        try:
            openvino_genai.LLMPipeline(file, "CPU", enable_save_ov_model=True)  # writes beside the file
        except RuntimeError as error:
            raise ValueError(f"model.source={source}: OpenVINO GenAI cannot read this GGUF file: {error}") from error
        for name in (MODEL_FILE, *TOKENIZER_FILES):
            for part in (Path(temporary) / name, (Path(temporary) / name).with_suffix(".bin")):
                part.rename(folder / part.name)
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    (folder / "config.json").write_text(json.dumps(_config(metadata, tied), indent=2))
    (folder / "generation_config.json").write_text(json.dumps(_token_ids(metadata), indent=2))
    if metadata.get("tokenizer.chat_template"):
        (folder / "chat_template.jinja").write_text(metadata["tokenizer.chat_template"], encoding="utf-8")


def _write_fp16(reader: GGUFReader, target: Path) -> None:
    """Copy a GGUF file with matrices in 16 bits and vectors (norms) in 32."""
    import numpy as np
    from gguf import GGUFValueType, GGUFWriter
    from gguf.quants import dequantize

    writer = GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":  # the writer adds these itself
            continue
        kind = field.types[0]
        value = FP16_FILE if name == "general.file_type" else field.contents()
        writer.add_key_value(name, value, kind, field.types[-1] if kind == GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, values.astype(np.float16 if values.ndim > 1 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _config(metadata: dict[str, Any], tied: bool) -> dict[str, Any]:
    """The `config.json` that transformers writes for this model, as far as an IR folder needs it."""
    architecture = metadata["general.architecture"]

    def of(key: str, default: object = None) -> Any:
        return metadata.get(f"{architecture}.{key}", default)

    heads = of("attention.head_count")
    return {
        "architectures": [ARCHITECTURES[architecture]],
        "model_type": architecture,
        "dtype": "float16",
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "hidden_size": of("embedding_length"),
        "intermediate_size": of("feed_forward_length"),
        "num_hidden_layers": of("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": of("attention.head_count_kv", heads),
        "head_dim": of("attention.key_length", of("embedding_length") // heads),
        "max_position_embeddings": of("context_length"),
        "rms_norm_eps": of("attention.layer_norm_rms_epsilon"),
        "rope_theta": of("rope.freq_base"),
        "tie_word_embeddings": tied,
        **_token_ids(metadata),
    }


def _token_ids(metadata: dict[str, Any]) -> dict[str, int]:
    """The special tokens of text generation, by their names in transformers."""
    ids = {name: metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
    ids["pad"] = metadata.get("tokenizer.ggml.padding_token_id", ids["eos"])
    return {f"{name}_token_id": value for name, value in ids.items() if value is not None}
