"""vLLM's engine in this process, on GPUs or with vLLM's CPU build."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Where vLLM is not installed, pyright takes this file for the package `vllm`, hence the two comments for pyright below.
from vllm import EngineArgs, LLMEngine
from vllm.exceptions import VLLMClientError
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

from hfray.config.formats import format_name
from hfray.engines.base import Engine, Request, RequestError, StepOutput
from hfray.engines.precision import precision_of
from hfray.engines.torch.checkpoint import load_tokenizer
from hfray.engines.waiting import WaitingRequests
from hfray.grammars import closed
from hfray.models.folder import end_token_ids, stored_end_token_ids
from hfray.response import ResponseFormat

# vLLM runs in this process, so that a dead engine ends the worker. vLLM reads these variables.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

SAMPLING = ("temperature", "top_k", "top_p", "min_p")
PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")


@dataclass(slots=True)
class _Running:
    """A request in vLLM, with vLLM's id for it."""

    request: Request
    key: str
    generated: int = 0


class VLLMEngine(Engine):
    """Runs requests on vLLM's `LLMEngine`.

    Args:
        folder: the Hugging Face folder.
        capacity: sequences run at once.
        gpu_share: the part that this engine gets of the GPU memory that vLLM would take by default.
        arguments: further `EngineArgs` of vLLM.
    """

    def __init__(
        self,
        folder: Path,
        *,
        capacity: int = 256,
        trust_remote_code: bool = False,
        gpu_share: float = 1.0,
        **arguments: Any,
    ) -> None:
        # The request alone decides about sampling, not the model's generation_config. On a CPU, a seeded row with chunked
        # prefill crashes vLLM, because torch's CPU generators cannot be rewound.
        fixed = {"generation_config": "vllm"} | ({"enable_chunked_prefill": False} if current_platform.is_cpu() else {})
        mine = {"model": str(folder), "max_num_seqs": capacity, "trust_remote_code": trust_remote_code}
        if gpu_share < 1:
            mine["gpu_memory_utilization"] = gpu_share * EngineArgs.gpu_memory_utilization
        self.tokenizer = load_tokenizer(folder, trust_remote_code)
        try:
            engine_args = EngineArgs(**(fixed | mine | arguments))  # pyright: ignore[reportCallIssue]
            self._vllm: Any = LLMEngine.from_engine_args(engine_args)  # pyright: ignore[reportAttributeAccessIssue]
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"vLLM cannot run model.source={folder} with backend.options={arguments}: {error}"
            ) from error
        config = self._vllm.vllm_config
        self.precision = _precision(self._vllm)
        self.context_length, self.capacity = config.model_config.max_model_len, config.scheduler_config.max_num_seqs
        self.end_ids = end_token_ids(stored_end_token_ids(folder), self.tokenizer.hf.eos_token_id)
        self._waiting = WaitingRequests()
        self._running: dict[int, _Running] = {}

    def prepare(self, form: ResponseFormat) -> None:
        """vLLM compiles forms itself, off its steps; it refuses those that it cannot compile when they are added."""
        if form.after_thought:
            raise RequestError("response.after_reasoning=true: is not supported by backend=vllm; use transformers")

    def add(self, request: Request) -> None:
        if request.params.no_repeat_ngram_size:
            raise RequestError("generation.no_repeat_ngram_size is not supported by backend=vllm; use transformers")
        self._waiting.add(request)

    def step(self) -> list[StepOutput]:
        refused = []
        for request in self._waiting.take(self.capacity - len(self._running), self.ending):
            prompt = {"prompt_token_ids": request.prompt_ids}
            try:
                key = self._vllm.add_request(str(request.id), prompt, self._sampling(request))
                self._running[request.id] = _Running(request, key)
            except (VLLMClientError, ValueError) as error:
                refused.append(StepOutput(request.id, error=f"vLLM refuses this request: {error}"))
        outputs = [self._read(output) for output in self._vllm.step()] if self._running else []
        self.num_running = len(outputs)
        return refused + outputs

    def cancel(self, request_id: int) -> None:
        self._waiting.cancel(request_id)
        running = self._running.pop(request_id, None)
        if running is not None:
            self._vllm.abort_request([running.key], internal=True)

    @property
    def num_unfinished(self) -> int:
        return len(self._running) + len(self._waiting)

    def close(self) -> None:
        self._vllm = None

    def _read(self, given: Any) -> StepOutput:
        completion, running = given.outputs[0], self._running[int(given.request_id)]
        output = StepOutput(running.request.id, list(completion.token_ids))
        for token, likely in zip(output.token_ids, completion.logprobs or (), strict=False):
            ranked = sorted(likely.items(), key=lambda entry: entry[1].rank)
            top = [(other, entry.logprob) for other, entry in ranked[: running.request.params.logprobs]]
            output.logprobs.append((likely[token].logprob, top))
        running.generated += len(output.token_ids)
        if running.generated == len(output.token_ids):  # the first tokens
            self.prefix_tokens += given.num_cached_tokens or 0
        if given.finished:
            if completion.finish_reason == "stop" and output.token_ids and output.token_ids[-1] in self.end_ids:
                del output.token_ids[-1], output.logprobs[len(output.token_ids) :]
            output.finish_reason = completion.finish_reason
            if completion.finish_reason not in ("stop", "length"):
                output.error = f"vLLM ended this request: {completion.finish_reason}"
            self._waiting.observe(running.request, running.generated)
            del self._running[running.request.id]
        return output

    def _sampling(self, request: Request) -> SamplingParams:
        params = request.params
        given = {name: getattr(params, name) for name in (*(SAMPLING if params.sampling else ()), *PENALTIES)}
        given = {name: value for name, value in given.items() if value is not None}
        return SamplingParams(
            **{"temperature": 1.0 if params.sampling else 0.0} | given,
            seed=request.seed if params.sampling else None,
            max_tokens=request.max_new_tokens,
            min_tokens=min(params.min_new_tokens, request.max_new_tokens),
            ignore_eos=params.ignore_eos and params.response is None,
            structured_outputs=None if params.response is None else _structured(params.response),
            stop_token_ids=[] if params.ignore_eos else sorted(self.end_ids),
            logprobs=params.logprobs,
            detokenize=False,  # the loop detokenizes for all engines
            output_kind=RequestOutputKind.DELTA,
        )


def _structured(form: ResponseFormat) -> StructuredOutputsParams:
    if form.kind == "choice":
        return StructuredOutputsParams(choice=form.choices)
    if form.kind == "schema":
        return StructuredOutputsParams(json=closed(form.schema), disable_any_whitespace=True)
    return StructuredOutputsParams(**{form.kind: form.text})


def _precision(engine: Any) -> str:
    """What the loaded model computes in, as `Engine.precision`.

    A model over several GPUs is in other processes, so only vLLM's own record of it is at hand.
    """
    config = engine.vllm_config
    if config.parallel_config.world_size == 1:
        computes = engine.apply_model(precision_of)[0]
    else:
        computes = format_name(config.model_config.dtype)
    kept = config.cache_config.cache_dtype
    return computes if kept == "auto" or format_name(kept) == computes else f"{computes}, KV cache {kept}"
