"""Encoder-decoder models (T5, BART, Marian, ...): the model's own `generate` on batches of similar length.

Beam search advances the rows of a batch together, so one step here runs a whole batch from start to end and returns
all its tokens. The same class runs transformers' models and optimum-intel's OpenVINO models: both have `generate`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, GenerationConfig, LogitsProcessor, LogitsProcessorList

from hfray.engines.base import GenerationParams, Request, RequestError, StepOutput
from hfray.engines.capacity import CPU_CAPACITY
from hfray.engines.precision import openvino_properties, precision_of, precision_of_compiled
from hfray.engines.torch.admission import Admission, AdmittingEngine
from hfray.engines.torch.checkpoint import TransformersTokenizer, end_ids, load_model, load_tokenizer
from hfray.engines.torch.memory import out_of_memory, release
from hfray.engines.torch.row import Row
from hfray.engines.torch.sampling import Sampler
from hfray.models.folder import context_length, read_config

BATCH_TOKENS = 8192
GPU_ROWS = 256
UNSET_MAX_LENGTH = 20  # transformers' global default; treated as not set
OVERRIDES = ("num_beams", "length_penalty", "early_stopping", "repetition_penalty", "no_repeat_ngram_size")
UNSUPPORTED = ("presence_penalty", "frequency_penalty")


class PrefixTokenizer(TransformersTokenizer):
    """A tokenizer that puts the task's prefix ("summarize: ") before every prompt."""

    def __init__(self, tokenizer: Any, prefix: str = "") -> None:
        super().__init__(tokenizer)
        self.prefix = prefix

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return super().encode(self.prefix + text, add_special_tokens=add_special_tokens)


class Seq2SeqEngine(AdmittingEngine):
    """An encoder-decoder model as an engine.

    Args:
        model: a model of transformers or optimum-intel; it has `generate`.
        tokenizer: its tokenizer.
        task: selects the entry of the config's `task_specific_params` with prefix and generation settings, as in
            transformers 4's pipelines; "translation" selects the first language pair.
        capacity: how many rows run at once; halved for a while when memory runs out.
        batch_tokens: the maximum number of prompt tokens, padding included, in one batch.
        context: the maximum number of prompt tokens, and of generated tokens; None: no limit.
        precision: what an OpenVINO model computes in; None: as the weights of the model say.
    """

    continues_prompt = False

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        task: str = "text2text-generation",
        capacity: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        context: int | None = None,
        precision: str | None = None,
    ) -> None:
        self.model: Any = model
        self.context_length = context
        self.precision = precision or precision_of(model)
        self.generation: GenerationConfig = copy.deepcopy(model.generation_config)
        task_params = task_settings(model.config, task)
        self.tokenizer = PrefixTokenizer(tokenizer, task_params.pop("prefix", None) or "")
        self.generation.update(**task_params)
        rows = capacity or (GPU_ROWS if model.device.type == "cuda" else CPU_CAPACITY)
        self._admission = Admission(rows, batch_tokens)
        self.end_ids = end_ids(model, self.tokenizer)
        self._waiting: list[Request] = []

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        *,
        task: str = "text2text-generation",
        capacity: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> Seq2SeqEngine:
        """Load a Hugging Face folder; `options` are passed to `load_model`. Raises ValueError."""
        _check_architecture(folder, task)
        tokenizer = load_tokenizer(folder, trust_remote_code).hf
        model = load_model(folder, AutoModelForSeq2SeqLM, trust_remote_code=trust_remote_code, **options)
        return cls(
            model,
            tokenizer,
            task=task,
            capacity=capacity,
            batch_tokens=batch_tokens,
            context=_positions(folder),
        )

    @classmethod
    def from_openvino(
        cls,
        folder: Path,
        *,
        task: str = "text2text-generation",
        device: str = "CPU",
        precision: str = "auto",
        properties: Mapping[str, Any] | None = None,
        capacity: int | None = None,
    ) -> Seq2SeqEngine:
        """Load an IR folder through optimum-intel. Raises ValueError."""
        try:
            from optimum.intel import OVModelForSeq2SeqLM
        except ImportError as error:
            raise ValueError(
                f"backend=openvino with task={task} runs through optimum-intel, which cannot be imported ({error}). "
                "Install it with `pip install hfray[export]`."
            ) from error
        _check_architecture(folder, task)
        tokenizer = load_tokenizer(folder).hf
        try:
            chosen = openvino_properties(precision, device, properties or {})
            model: Any = OVModelForSeq2SeqLM.from_pretrained(folder, device=device, ov_config=dict(chosen))
            model.compile()
            computes = precision_of_compiled(model.decoder.request.get_compiled_model(), chosen)
        except RuntimeError as error:
            raise ValueError(f"OpenVINO cannot run model.source={folder} on device.name={device}: {error}") from error
        return cls(model, tokenizer, task=task, capacity=capacity, context=_positions(folder), precision=computes)

    def room(self, params: GenerationParams, prompt_tokens: int) -> int:
        """As the base class; `max_length` counts the completion and its start token, never the prompt."""
        if self.context_length is not None and prompt_tokens > self.context_length:
            raise RequestError(
                f"prompt too long: {prompt_tokens} tokens, and the model's encoder holds {self.context_length}"
            )
        own, model_length = self.generation.max_new_tokens, self.generation.max_length
        if params.max_new_tokens is not None:
            room = params.max_new_tokens
        elif params.max_length is not None:
            room = max(1, params.max_length - 1)
        elif own or model_length not in (None, UNSET_MAX_LENGTH):
            room = own or max(1, model_length - 1)
        else:
            room = params.DEFAULT_MAX_NEW_TOKENS
        return room if self.context_length is None else min(room, self.context_length - 1)

    def add(self, request: Request) -> None:
        for name in UNSUPPORTED:
            if getattr(request.params, name):
                raise RequestError(f"generation.{name} is not supported for sequence-to-sequence models")
        if request.params.logprobs is not None:
            raise RequestError("generation.logprobs is not supported for sequence-to-sequence models")
        self._waiting.append(request)

    def step(self) -> list[StepOutput]:
        requests = self._take()
        self.num_running = len(requests)
        if not requests:
            return []
        try:
            outputs = self._run(requests)
        except (torch.OutOfMemoryError, RuntimeError) as caught:
            if not out_of_memory(caught):
                raise
            error = str(caught)
        else:
            self._admission.rise()
            return outputs
        return self._shrink(requests, error)  # after the `except`, so that the traceback no longer keeps tensors

    def cancel(self, request_id: int) -> None:
        self._waiting = [request for request in self._waiting if request.id != request_id]

    @property
    def num_unfinished(self) -> int:
        return len(self._waiting)

    def close(self) -> None:
        self._waiting, self.model = [], None

    # --- one batch ---------------------------------------------------------------------------------------------

    def _take(self) -> list[Request]:
        """The longest waiting prompts that share one set of parameters."""
        self._waiting.sort(key=lambda request: len(request.prompt_ids), reverse=True)
        if not self._waiting:
            return []
        first = self._waiting[0]
        room = min(self.capacity, max(1, self._admission.prefill_tokens // len(first.prompt_ids)))
        alike = [r for r in self._waiting if r.params == first.params and r.max_new_tokens == first.max_new_tokens]
        taken = {request.id for request in alike[:room]}
        self._waiting = [request for request in self._waiting if request.id not in taken]
        return alike[:room]

    @torch.inference_mode()
    def _run(self, requests: list[Request]) -> list[StepOutput]:
        length = max(len(request.prompt_ids) for request in requests)
        pad = self.generation.pad_token_id
        pad = min(self.end_ids, default=0) if pad is None else pad
        ids = torch.full((len(requests), length), pad)
        mask = torch.zeros((len(requests), length), dtype=torch.long)
        for i, request in enumerate(requests):
            count = len(request.prompt_ids)
            ids[i, :count] = torch.tensor(request.prompt_ids)
            mask[i, :count] = 1
        processors = LogitsProcessorList([DrawRows(requests)] if requests[0].params.sampling else [])
        sequences = self.model.generate(
            input_ids=ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            generation_config=self._config(requests[0]),
            logits_processor=processors,
        )
        return [self._output(r, tokens[1:]) for r, tokens in zip(requests, sequences.tolist(), strict=True)]

    def _config(self, request: Request) -> GenerationConfig:
        """The request's settings; settings that the request leaves out keep the model's values."""
        params, config = request.params, copy.deepcopy(self.generation)
        config.max_new_tokens, config.max_length = request.max_new_tokens, None
        config.do_sample = False  # DrawRows samples each row
        config.num_return_sequences, config.return_dict_in_generate = 1, False
        for name in OVERRIDES:
            if getattr(params, name) is not None:
                setattr(config, name, getattr(params, name))
        if config.repetition_penalty is not None:  # transformers rejects an int
            config.repetition_penalty = float(config.repetition_penalty)
        if params.sampling:
            config.num_beams, config.early_stopping = 1, False
        if params.min_new_tokens:
            config.min_new_tokens = min(params.min_new_tokens, request.max_new_tokens)
        if params.ignore_eos:
            config.min_new_tokens = request.max_new_tokens
        return config

    def _output(self, request: Request, tokens: list[int]) -> StepOutput:
        ends = [i for i, token in enumerate(tokens) if token in self.end_ids]
        if ends and not request.params.ignore_eos:
            return StepOutput(request.id, tokens[: ends[0]], finish_reason="stop")
        return StepOutput(request.id, tokens[: request.max_new_tokens], finish_reason="length")

    def _shrink(self, requests: list[Request], error: str) -> list[StepOutput]:
        """Halve the capacity and run the rows again; a row that fails alone gets the error."""
        release()
        if self.capacity == 1:
            return [StepOutput(requests[0].id, error=f"out of memory with this row alone: {error}")]
        self._admission.shrink(len(requests), len(requests) * max(len(r.prompt_ids) for r in requests), 0)
        self._waiting.extend(requests)
        return []


class DrawRows(LogitsProcessor):
    """Samples inside `generate`: draws each row's token with the row's own seed, and masks all other tokens.

    A row's text then depends on its prompt and seed only, not on the other rows of the batch.
    """

    def __init__(self, requests: list[Request]) -> None:
        done_by_generate = {"repetition_penalty": None, "no_repeat_ngram_size": None, "min_new_tokens": 0}
        self._rows = [Row(replace(r, params=replace(r.params, **done_by_generate))) for r in requests]
        self._sampler = Sampler(set())

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        picked = self._sampler.pick(scores, self._rows)
        for row, token in zip(self._rows, picked.tokens, strict=True):
            row.tokens.append(token)  # the draw depends on the number of tokens
        return torch.full_like(scores, float("-inf")).scatter_(1, picked.on_device[:, None], 0.0)


def task_settings(config: Any, task: str) -> dict[str, Any]:
    """The config's `task_specific_params` for the task: `prefix` and generation settings; may be empty."""
    settings = getattr(config, "task_specific_params", None) or {}
    name = task if task in settings else next((n for n in settings if task == "translation" and n.startswith(task)), "")
    found = dict(settings.get(name) or {})
    if getattr(config, "prefix", None):
        found.setdefault("prefix", config.prefix)
    return found


def _positions(folder: Path) -> int | None:
    """The encoder's number of positions; None for T5, which has relative positions without a limit."""
    return None if "relative_attention_num_buckets" in read_config(folder) else context_length(folder)


def _check_architecture(folder: Path, task: str) -> None:
    config = read_config(folder)
    if config and not config.get("is_encoder_decoder", False):
        raise ValueError(
            f"task={task}: model.source={folder} ({config.get('model_type')}) is not an encoder-decoder model. "
            "Use task=text-generation, or a model such as T5 or BART."
        )
