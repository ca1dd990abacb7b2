"""Models with random weights in the shapes of real ones, made on the device, and engines over them."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hfray.engines.base import Request
from hfray.engines.torch.bloom import use_device_masks
from hfray.engines.torch.causal import TransformersEngine
from hfray.engines.torch.grouped_attention import use_grouped_attention
from hfray.params import GenerationParams

GREEDY, SAMPLED = {"temperature": 0}, {"temperature": 0.8, "top_p": 0.95, "top_k": 50}


def config_of(name: str, small: bool) -> Any:
    """The configuration of `bloom` (BLOOM-1b7) or `llama` (Llama 3.2 1B); `small`: of a tiny model of the kind."""
    from transformers import BloomConfig, LlamaConfig

    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    if name == "bloom":
        sizes = {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 1000}
        return BloomConfig(
            **(sizes if small else {"hidden_size": 2048, "n_layer": 24, "n_head": 16, "vocab_size": 250_880}), **ends
        )
    large = {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
        "max_position_embeddings": 8192,
    }
    tiny = large | {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1000,
    }
    return LlamaConfig(**(tiny if small else large), tie_word_embeddings=True, **ends)


@contextmanager
def model_of(name: str, device: str, dtype: torch.dtype, small: bool) -> Iterator[Any]:
    """A model with random weights, the same for a seed; freed afterwards."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config_of(name, small), dtype=torch.float32)
    finally:
        torch.set_default_dtype(before)
    model.generation_config.eos_token_id = None  # random weights would end rows at random
    model = model.to(dtype).eval()
    try:
        yield model
    finally:
        del model
        free()


def free() -> None:
    """Return memory to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


class Tokenizer:
    """What an engine reads of a tokenizer."""

    bos_id = 1

    class hf:
        eos_token_id = None


def engine_of(model: Any, **options: Any) -> TransformersEngine:
    """An engine over the model, as `TransformersEngine.from_folder` makes it."""
    use_grouped_attention(model)
    use_device_masks(model)
    return TransformersEngine(model, Tokenizer(), **options)


def requests(
    count: int, prompt_tokens: int | list[int], new_tokens: int, vocabulary: int, start: int = 0, **params: Any
) -> list[Request]:
    """Requests with random prompts that generate exactly `new_tokens` tokens each."""
    generator = torch.Generator().manual_seed(start)
    settings = GenerationParams(max_new_tokens=new_tokens, ignore_eos=True, **(params or GREEDY))
    lengths = [prompt_tokens] * count if isinstance(prompt_tokens, int) else prompt_tokens
    return [
        Request(
            id=start + i,
            prompt_ids=torch.randint(4, vocabulary, (lengths[i],), generator=generator).tolist(),
            max_new_tokens=new_tokens,
            params=settings,
            seed=start + i,
        )
        for i in range(count)
    ]


def complete(engine: TransformersEngine, wanted: Iterable[Request]) -> dict[int, list[int]]:
    """The tokens of each request. Raises RuntimeError if one fails."""
    tokens: dict[int, list[int]] = {}
    for request in wanted:
        tokens[request.id] = []
        engine.add(request)
    while engine.num_unfinished:
        for output in engine.step():
            if output.error is not None:
                raise RuntimeError(output.error)
            tokens[output.request_id] += output.token_ids
    return tokens


def tokens_per_second(engine: TransformersEngine, wanted: list[Request], device: str) -> float:
    """Generated tokens per second, prefill included."""
    synchronize(device)
    start = time.perf_counter()
    tokens = complete(engine, wanted)
    synchronize(device)
    return sum(map(len, tokens.values())) / (time.perf_counter() - start)
