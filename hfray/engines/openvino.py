"""OpenVINO GenAI's continuous batching over an IR folder. Imports neither torch nor transformers."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import openvino
import openvino_genai as genai
import psutil
from openvino_genai.py_openvino_genai import GenerationHandle

from hfray.engines.base import NO_CHAT_TEMPLATE, Engine, Request, RequestError, StepOutput
from hfray.engines.capacity import capacity_for_cache
from hfray.engines.genaiforms import structured_output
from hfray.engines.precision import compile_layer, openvino_properties, precision_of_compiled
from hfray.engines.waiting import WaitingRequests
from hfray.models.folder import check_tokenizer, context_length, end_token_ids, kv_values_per_token
from hfray.response import ResponseFormat

Loaded = TypeVar("Loaded")
KV_CACHE_SHARE = 0.25  # default KV cache size as a share of the free memory
KV_CACHE_GIB = (1, 16)  # limits of the default size


class OpenVINOTokenizer:
    """The IR folder's own tokenizer."""

    def __init__(self, folder: Path) -> None:
        check_tokenizer(folder)
        # With pinning, OpenVINO would bind the calling thread to one core.
        self.native = _load_apart(genai.Tokenizer, folder, ENABLE_CPU_PINNING=False)
        bos = self.native.get_bos_token_id()
        self.bos_id = bos if bos >= 0 else None
        # OpenVINO's Python binding deadlocks if two threads are the first to use a tensor at the same time.
        self.encode("a")
        openvino.Tensor(_row([0]))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        if not text:
            return []
        safe = text.encode("utf-8", "replace").decode()  # the native tokenizer rejects lone surrogates
        return self.native.encode(safe, add_special_tokens=add_special_tokens).input_ids.data[0].tolist()

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.native.decode(list(token_ids)) if len(token_ids) else ""

    @property
    def has_chat_template(self) -> bool:
        return bool(self.native.chat_template)

    def chat(self, messages: list[dict[str, str]]) -> str:
        if not self.has_chat_template:
            raise ValueError(NO_CHAT_TEMPLATE)
        return self.native.apply_chat_template(messages, add_generation_prompt=True)


def _load_apart(load: Callable[..., Loaded], *args: Any, **kwargs: Any) -> Loaded:
    """Call `load` on a thread of its own.

    A tokenizer, and a pipeline with one, gives the thread that loads it a stack for signal handlers. Whoever drops it
    frees that stack, also on another thread (OpenVINO 2026.4). If the main thread loaded it, Ctrl-C then ended the
    process with SIGSEGV.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(load, *args, **kwargs).result()


@dataclass(slots=True)
class _Running:
    """A request in the pipeline."""

    request: Request
    handle: GenerationHandle
    generated: int = 0


class OpenVINOEngine(Engine):
    """Runs requests on a GenAI `ContinuousBatchingPipeline`.

    Args:
        folder: the IR folder (`openvino_model.xml`, `openvino_tokenizer.xml`, `config.json`).
        device: "CPU", "GPU", ...
        precision: a value of `model.precision`.
        properties: OpenVINO properties, passed on unchanged.
        capacity: sequences run at once; None: 128 to 256, depending on the KV cache.
        batch_tokens: the maximum number of tokens (of prompts and running sequences) in one step.
        kv_cache_gib: size of the KV cache; None: a quarter of the free memory times `machine_share`.
        machine_share: this engine's share of the machine, 0 to 1, if several engines run on it.
        prefix_caching: reuse the KV cache of common prompt prefixes.
    """

    top_logprobs = False  # GenAI reports only the generated token's log-probability

    def __init__(
        self,
        folder: Path,
        *,
        device: str = "CPU",
        precision: str = "auto",
        properties: Mapping[str, Any] | None = None,
        capacity: int | None = None,
        batch_tokens: int = 512,
        kv_cache_gib: float | None = None,
        machine_share: float = 1.0,
        prefix_caching: bool = True,
    ) -> None:
        self.tokenizer = OpenVINOTokenizer(folder)
        self.context_length = context_length(folder)
        self._kv_cache_gib = max(1, round(kv_cache_gib or _kv_cache_gib(machine_share)))
        properties = dict(properties or {})
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = self._kv_cache_gib
        scheduler.enable_prefix_caching = prefix_caching
        try:
            properties = openvino_properties(precision, device, properties)
            self.precision = precision_of_compiled(compile_layer(device, properties), properties)
            self.capacity = capacity or capacity_for_cache(self._kv_cache_tokens(folder))
            scheduler.max_num_seqs = self.capacity
            scheduler.max_num_batched_tokens = max(batch_tokens, self.capacity)
            self._pipeline: Any = _load_apart(
                genai.ContinuousBatchingPipeline, folder, self.tokenizer.native, scheduler, device, **properties
            )
        except RuntimeError as error:
            raise ValueError(
                f"OpenVINO cannot run model.source={folder} on device.name={device} with "
                f"backend.ov_config={json.dumps(properties)}: {error}"
            ) from error
        self._defaults = self._pipeline.get_config()
        self._running: dict[int, _Running] = {}
        self._waiting = WaitingRequests()
        self._prefixes = PrefixIndex(self._kv_cache_tokens(folder)) if prefix_caching else None

    def prepare(self, form: ResponseFormat) -> None:
        """GenAI compiles a form when its first request starts, and keeps it; here it is only checked and converted."""
        structured_output(form)

    def add(self, request: Request) -> None:
        if (request.params.num_beams or 1) > 1:
            raise RequestError("generation.num_beams > 1 is not supported by backend=openvino; use transformers")
        if request.params.no_repeat_ngram_size:
            raise RequestError("generation.no_repeat_ngram_size is not supported by backend=openvino; use transformers")
        if request.params.logprobs:
            raise RequestError(
                f"generation.logprobs={request.params.logprobs}: backend=openvino reports the log-probability of the "
                "generated token only, not those of other likely tokens. Use generation.logprobs=0, or "
                "backend=transformers"
            )
        try:
            self._config(request).validate()
        except RuntimeError as error:  # such parameters would end the pipeline
            raise RequestError(f"OpenVINO GenAI refuses these parameters: {str(error).splitlines()[-1]}") from error
        self._waiting.add(request)

    def step(self) -> list[StepOutput]:
        self._start()
        self._pipeline.step()
        self.num_running = self._pipeline.get_metrics().scheduled_requests
        outputs = []
        for request_id, running in list(self._running.items()):
            output = self._read(running)
            if output is None:
                continue
            outputs.append(output)
            running.generated += len(output.token_ids)
            if output.finish_reason is not None or output.error is not None:
                self._waiting.observe(running.request, running.generated)
                del self._running[request_id]
        return outputs

    def cancel(self, request_id: int) -> None:
        self._waiting.cancel(request_id)
        running = self._running.pop(request_id, None)
        if running is not None:
            running.handle.cancel()

    @property
    def num_unfinished(self) -> int:
        return len(self._running) + len(self._waiting)

    def close(self) -> None:
        self._running.clear()
        self._waiting = WaitingRequests()
        self._pipeline = None

    def _kv_cache_tokens(self, folder: Path) -> int:
        """How many tokens the KV cache holds; a default if the model's config lacks the sizes."""
        values = kv_values_per_token(folder)
        value_bytes = 4 if self.precision.startswith("fp32") else 2
        return DEFAULT_TOKENS if values is None else (self._kv_cache_gib << 30) // (value_bytes * values)

    def _start(self) -> None:
        """Pass waiting requests to the pipeline, at most as many as may run at once.

        The pipeline runs all requests that it has; `max_num_seqs` does not limit them (2026.4).
        """
        for request in self._waiting.take(self.capacity - len(self._running), self.ending):
            if self._prefixes is not None:
                self.prefix_tokens += self._prefixes.add(request.prompt_ids)
            ids = openvino.Tensor(_row(request.prompt_ids))
            handle = self._pipeline.add_request(request.id, ids, self._config(request))
            self._running[request.id] = _Running(request, handle)

    def _read(self, running: _Running) -> StepOutput | None:
        request, handle = running.request, running.handle
        if not handle.can_read():
            if handle.get_status() == genai.GenerationStatus.IGNORED:
                return StepOutput(
                    request.id,
                    error=f"prompt too long: it does not fit the KV cache of {self._kv_cache_gib} GiB "
                    "(backend.kv_cache_gib)",
                )
            return None
        output = StepOutput(request.id)
        while handle.can_read():
            for part in handle.read().values():
                output.token_ids.extend(part.generated_ids)
                if request.params.logprobs is not None:  # GenAI reports zeros if the request does not ask for them
                    output.logprobs.extend((logprob, []) for logprob in part.generated_log_probs)
                if part.finish_reason != genai.GenerationFinishReason.NONE:
                    output.finish_reason = "length" if part.finish_reason.name == "LENGTH" else "stop"
        if output.token_ids and output.finish_reason == "stop" and output.token_ids[-1] in self.end_ids:
            output.token_ids.pop()
        output.logprobs = output.logprobs[: len(output.token_ids)]
        return output

    @property
    def end_ids(self) -> set[int]:
        return end_token_ids([self._defaults.eos_token_id, *self._defaults.stop_token_ids])

    def _config(self, request: Request) -> genai.GenerationConfig:
        params, config = request.params, genai.GenerationConfig()
        config.eos_token_id = self._defaults.eos_token_id
        config.stop_token_ids = self._defaults.stop_token_ids
        config.max_new_tokens = request.max_new_tokens
        config.min_new_tokens = min(params.min_new_tokens, request.max_new_tokens)
        config.ignore_eos = params.ignore_eos and params.response is None
        if params.response is not None:
            config.structured_output_config = structured_output(params.response)
        config.do_sample = params.sampling
        config.rng_seed = request.seed
        config.apply_chat_template = False
        if params.logprobs is not None:
            config.logprobs = 1
        sampling = ("temperature", "top_k", "top_p", "min_p") if params.sampling else ()
        always = ("repetition_penalty", "presence_penalty", "frequency_penalty")
        for name in (*sampling, *always):
            value = getattr(params, name)
            if value is not None and not (name == "top_k" and value == 0):
                setattr(config, name, value)
        return config


def _row(token_ids: list[int]) -> np.ndarray:
    return np.array([token_ids], dtype=np.int64)


def _kv_cache_gib(machine_share: float) -> float:
    free = psutil.virtual_memory().available * KV_CACHE_SHARE * machine_share / (1 << 30)
    return min(max(free, KV_CACHE_GIB[0]), KV_CACHE_GIB[1])


BLOCK = 32  # tokens; the cache stores and finds whole blocks
DEFAULT_TOKENS = 1 << 20  # assumed size of a KV cache if it cannot be computed


class PrefixIndex:
    """An LRU index of prompt prefixes in whole blocks. It estimates how many tokens GenAI's prefix cache saves.

    Args:
        tokens: capacity of the cache.
    """

    def __init__(self, tokens: int) -> None:
        self._most = max(1, tokens // BLOCK)
        self._known: OrderedDict[int, None] = OrderedDict()

    def add(self, prompt_ids: Sequence[int]) -> int:
        """Add a prompt. Returns how many of its tokens the cache already holds from earlier prompts."""
        ids = np.asarray(prompt_ids, dtype=np.int32)
        found, searching, chain = 0, True, 0
        for start in range(0, len(ids) - BLOCK + 1, BLOCK):
            chain = hash((chain, ids[start : start + BLOCK].tobytes()))
            searching = searching and chain in self._known
            found += BLOCK * searching
            self._known[chain] = None
            self._known.move_to_end(chain)
        while len(self._known) > self._most:
            self._known.popitem(last=False)
        return min(found, max(0, len(ids) - 1))  # the model always computes the last token, for its logits
