"""Small random models as Hugging Face folders. The cache of models keeps them, so that their exports are kept too."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

from hfray.models.cache import cached
from tests.conftest import TEXT


def tiny_model(name: str) -> Path:
    """The folder of a model: `gpt2`, `bloom`, `llama` or `t5`, each of two layers."""
    made_by = [Path(__file__).read_text(), TEXT, version("torch"), version("transformers"), version("tokenizers")]
    return cached("tests", f"{name}-{_digest(made_by)}", lambda folder: MODELS[name](folder))


def tiny_ir(name: str, **options: str) -> Path:
    """The OpenVINO IR folder of a model, fp32."""
    from hfray.models.openvino_ir import export, tool_versions  # needs pydantic, which the models do not

    folder = tiny_model(name)
    made_by = [folder.name, options, tool_versions()]
    return cached("tests", f"{name}-ir-{_digest(made_by)}", lambda target: export(folder, target, **options))


def _digest(made_by: list[object]) -> str:
    return hashlib.sha256(json.dumps(made_by).encode()).hexdigest()[:12]


def _gpt2(folder: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    vocab = _tokenizer(folder)
    _save(folder, GPT2Config(vocab_size=vocab, n_positions=128, n_embd=32, n_layer=2, n_head=4), GPT2LMHeadModel)


def _bloom(folder: Path) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    config = BloomConfig(vocab_size=_tokenizer(folder), hidden_size=32, n_layer=2, n_head=4, seq_length=128)
    _save(folder, config, BloomForCausalLM)


def _llama(folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=_tokenizer(folder),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,  # each of size 32, the smallest that vLLM's kernels support
        num_key_value_heads=1,
        max_position_embeddings=128,
    )
    _save(folder, config, LlamaForCausalLM)


def _t5(folder: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    vocab = _tokenizer(folder)
    config = T5Config(
        vocab_size=vocab, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    _save(folder, config, T5ForConditionalGeneration)


MODELS = {"gpt2": _gpt2, "bloom": _bloom, "llama": _llama, "t5": _t5}


def _tokenizer(folder: Path, size: int = 400) -> int:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(TEXT * 4, vocab_size=size, min_frequency=1, special_tokens=["<|endoftext|>"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        chat_template="{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:",
    )
    fast.save_pretrained(folder)
    return len(fast)


def _save(folder: Path, config, model_class) -> None:
    import torch

    torch.manual_seed(0)
    config.bos_token_id = config.eos_token_id = config.pad_token_id = 0
    model = model_class(config)
    with torch.no_grad():  # with larger weights, greedy picks are clear and rounding decides none
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    model.save_pretrained(folder)
