"""transformers' own continuous batching: paged attention, and on a GPU CUDA graphs and asynchronous batches if they work.

It supports greedy decoding only, and not all architectures (Llama, but not BLOOM).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching import RequestStatus

from hfray.engines.base import Engine, Request, RequestError, StepOutput
from hfray.engines.capacity import CPU_CAPACITY, MAX_CAPACITY
from hfray.engines.precision import precision_of
from hfray.engines.torch.checkpoint import TransformersTokenizer, end_ids, load_model, load_tokenizer
from hfray.engines.waiting import WaitingRequests
from hfray.errors import EngineDiedError
from hfray.models.folder import context_length, kv_values_per_token

BLOCK_TOKENS = 256  # transformers' default block size of the KV cache
CPU_KV_CACHE_GIB = 1.0
FREE_SHARE = 0.8  # of the free memory for the KV cache, if other workers use the GPU too
CPU_BATCH_TOKENS = 1024  # sdpa computes a mask of every token against every other token of a step
# transformers 5.5 reuses a CUDA graph recorded for short prompts for a longer prompt, but the graph fixes the length.
# transformers 5.17 records a graph for each length (rounded up).
GRAPHS_SINCE = Version("5.17")
WAIT_SECONDS = 1.0  # for a token, before checking that the manager's thread is alive

logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)  # it warns at the end of every request


@dataclass(slots=True)
class _Running:
    """A request in the manager, and the blocks that it may need."""

    request: Request
    blocks: int
    generated: int = 0


class PagedEngine(Engine):
    """Runs requests on a `ContinuousBatchingManager`.

    A request starts when the cache has room for its maximum length. Without room, the manager would preempt and restart
    requests, and miscount their tokens (transformers 5.5).

    Args:
        model: a loaded `PreTrainedModel` that supports paged attention.
        tokenizer: its tokenizer.
        capacity: requests run at once; None: 32 on a CPU, 256 on a GPU.
        batch_tokens: the maximum number of tokens, of prompts and running requests together, in one step.
        num_blocks: size of the KV cache in blocks of `BLOCK_TOKENS`; None: what the GPU's free memory holds.
        prefix_caching: reuse the blocks of common prompt prefixes; batches are not asynchronous then.

    Raises:
        ValueError: the model does not support paged attention, or there is not enough memory for the cache.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: TransformersTokenizer,
        *,
        capacity: int | None = None,
        batch_tokens: int = 8192,
        num_blocks: int | None = None,
        prefix_caching: bool = True,
        context: int | None = None,
    ) -> None:
        if not model._supports_attention_backend:
            raise ValueError(
                f"backend.paged=true: {type(model).__name__} has its own attention, which cannot be paged. "
                "Use backend.paged=false."
            )
        on_cpu = model.device.type == "cpu"
        check_attention(model.device.type, model.config._attn_implementation)
        self.tokenizer, self.context_length, self.precision = tokenizer, context, precision_of(model)
        self.capacity = capacity or (CPU_CAPACITY if on_cpu else MAX_CAPACITY)
        self.end_ids = end_ids(model, tokenizer)
        # Without pad_token_id, transformers warns for each request.
        greedy = GenerationConfig(do_sample=False, eos_token_id=sorted(self.end_ids) or -1, pad_token_id=0)
        batching = {
            "num_blocks": num_blocks,
            "max_batch_tokens": min(batch_tokens, CPU_BATCH_TOKENS) if on_cpu else batch_tokens,
            "allow_block_sharing": prefix_caching,
            # With asynchronous batches, the manager fails if a cancelled request completes a shared block.
            "use_async_batching": False if prefix_caching else None,
            "use_cuda_graph": None if Version(transformers.__version__) >= GRAPHS_SINCE else False,
            "auto_switch_to_flash": False,  # backend.attention decides
        }
        share = 1.0 if on_cpu else torch.cuda.get_per_process_memory_fraction(model.device)
        if share < 1:  # the manager does not know the limit
            batching["max_memory_percent"] = FREE_SHARE * share
        known = {field.name for field in fields(ContinuousBatchingConfig)}
        batching = ContinuousBatchingConfig(**{name: value for name, value in batching.items() if name in known})
        try:
            if not on_cpu:
                torch.cuda.set_device(model.device)  # the manager measures this device's memory
            self._manager: Any = model.init_continuous_batching(greedy, batching)
            self._manager.warmup()
        except (ValueError, AttributeError, RuntimeError) as error:
            raise ValueError(
                f"backend.paged=true: transformers cannot run {type(model).__name__} with paged attention: {error}. "
                "Use backend.paged=false."
            ) from error
        cache = self._manager.batch_processor.cache
        # With several groups of layers, a block does not hold BLOCK_TOKENS tokens, so `_blocks` would be wrong.
        if getattr(cache, "num_groups", 1) > 1:
            raise ValueError(
                f"backend.paged=true: {type(model).__name__} has layers with different attention, which hfray does not "
                "page. Use backend.paged=false."
            )
        self._num_blocks = self._free_blocks = cache.num_blocks
        self._started, self._waiting, self._first = False, WaitingRequests(), None
        self._running: dict[str, _Running] = {}

    @classmethod
    def from_folder(
        cls, folder: Path, *, kv_cache_gib: float | None = None, trust_remote_code: bool = False, **options: Any
    ) -> PagedEngine:
        """Load model and tokenizer; `options` are passed to `load_model` and the engine.

        Args:
            kv_cache_gib: size of the KV cache; None: what the GPU's free memory holds, 1 on a CPU.
        """
        tokenizer = load_tokenizer(folder, trust_remote_code)
        names = ("capacity", "batch_tokens", "prefix_caching")
        mine = {name: options.pop(name) for name in names if name in options}
        model = load_model(folder, trust_remote_code=trust_remote_code, **options)
        kv_cache_gib = kv_cache_gib or (CPU_KV_CACHE_GIB if model.device.type == "cpu" else None)
        if kv_cache_gib:
            values = kv_values_per_token(folder)
            if values is None:
                raise ValueError(
                    f"backend.kv_cache_gib={kv_cache_gib}: model.source={folder} has no layer sizes in its config"
                )
            block = BLOCK_TOKENS * values * model.dtype.itemsize
            mine["num_blocks"] = max(1, int(kv_cache_gib * (1 << 30) / block))
        return cls(model, tokenizer, context=context_length(folder), **mine)

    def add(self, request: Request) -> None:
        beyond = request.params.beyond_greedy
        if beyond is not None:
            raise RequestError(
                f"generation.{beyond}: backend.paged=true supports greedy decoding only. Use backend.paged=false"
            )
        if _blocks(request) > self._num_blocks:
            tokens = len(request.prompt_ids) + request.max_new_tokens
            raise RequestError(
                f"prompt and completion may take {tokens} tokens, and the KV cache holds "
                f"{self._num_blocks * BLOCK_TOKENS - 1}: raise backend.kv_cache_gib, or lower generation.max_new_tokens"
            )
        self._waiting.add(request)

    def step(self) -> list[StepOutput]:
        if self._started and not self._manager.is_running():
            raise EngineDiedError("the thread of transformers' continuous batching has ended")
        self._start()
        if not self._running:
            return []
        result = None
        while result is None:
            result = self._manager.get_result(timeout=WAIT_SECONDS)
            if result is None and not self._manager.is_running():
                raise EngineDiedError("the thread of transformers' continuous batching has ended")
        self.num_running = len(self._running)
        outputs = []
        while result is not None:
            if result.request_id in self._running:
                outputs.append(self._read(result))
            result = self._manager.get_result(timeout=0)
        return outputs

    def cancel(self, request_id: int) -> None:
        self._waiting.cancel(request_id)
        if self._first is not None and self._first.id == request_id:
            self._first = None
        if str(request_id) in self._running:
            self._forget(str(request_id))
            self._manager.cancel_request(str(request_id))

    @property
    def num_unfinished(self) -> int:
        return len(self._running) + len(self._waiting) + (self._first is not None)

    def close(self) -> None:
        for request_id in self._running:
            self._manager.cancel_request(request_id)
        if self._manager.is_running():
            self._manager.stop(block=True)
        self._manager = None

    def _start(self) -> None:
        while len(self._running) < self.capacity:
            request = self._first or next(iter(self._waiting.take(1, self.ending)), None)
            if request is None:
                break
            blocks = _blocks(request)
            self._first = request if blocks > self._free_blocks else None
            if self._first is not None:
                break
            self._free_blocks -= blocks
            self._running[str(request.id)] = _Running(request, blocks)
            self._manager.add_request(
                request.prompt_ids,
                request_id=str(request.id),
                max_new_tokens=request.max_new_tokens,
                streaming=True,
                eos_token_id=-1 if request.params.ignore_eos else sorted(self.end_ids),
            )
        if self._running and not self._started:
            self._started = True
            self._manager.start()  # transformers 5.5 ends immediately if it starts without requests

    def _read(self, result: Any) -> StepOutput:
        """New tokens of a request. The list of tokens may be ahead of the reported status."""
        if result.status == RequestStatus.FAILED:
            raise EngineDiedError(f"transformers' continuous batching: {result.error}")
        running = self._running[result.request_id]
        request, finished = running.request, result.status == RequestStatus.FINISHED
        tokens = result.generated_tokens[running.generated :]
        running.generated += len(tokens)
        output = StepOutput(request.id, tokens)
        if tokens and tokens[-1] in self.end_ids and not request.params.ignore_eos:
            output.token_ids, output.finish_reason = tokens[:-1], "stop"
        elif finished or running.generated >= request.max_new_tokens:
            output.finish_reason = "length"
        if output.finish_reason is not None:
            self._waiting.observe(request, running.generated)
            self._forget(result.request_id)
        return output

    def _forget(self, request_id: str) -> None:
        self._free_blocks += self._running.pop(request_id).blocks


def check_attention(device: str, implementation: str) -> None:
    """Raise ValueError if paged attention would be slow: without flash attention, each step computes a mask of all its
    tokens against all tokens in the cache.

    Args:
        device: the kind of the model's device, as `cuda`.
        implementation: the model's attention implementation.
    """
    if device != "cpu" and "flash" not in implementation:
        raise ValueError(
            f"backend.paged=true: on a GPU this needs flash attention, and the model uses {implementation}. Set "
            "backend.attention=flash_attention_2 with the package flash-attn, or use backend.paged=false."
        )


def _blocks(request: Request) -> int:
    """How many blocks a request may take; transformers 5.5 counts one token too many."""
    return (len(request.prompt_ids) + request.max_new_tokens) // BLOCK_TOKENS + 1
