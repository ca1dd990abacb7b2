"""A model with a task and its settings, as transformers' `pipeline` is, over the engine loop that batches its calls."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hfray.completion import Completion, Prompt
from hfray.engines.base import Engine, GenerationParams, RequestError
from hfray.engines.load import SEQ2SEQ, load_engine
from hfray.inference.handle import Handle, Piece, merge
from hfray.inference.loop import EngineLoop
from hfray.langchain.settings import (
    FORMAT,
    TASKS,
    causal_defaults,
    ending_at,
    generation_params,
    pipeline_settings,
    positions,
    seq2seq_defaults,
)

if TYPE_CHECKING:
    from hfray.config.engine import EngineSettings


TIDY = [(" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't")]
TIDY += [(f" '{end}", f"'{end}") for end in ("m", "s", "ve", "re")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """The settings of one call: how to generate, and how the text is put together."""

    params: GenerationParams
    full_text: bool
    clean_up: bool
    add_special_tokens: bool
    sample: int

    def prompt(self, text: str) -> Prompt:
        """The prompt for the engine loop."""
        return Prompt(text, special_tokens_in_text=not self.add_special_tokens)

    def text(self, prompt: str, completion: Completion) -> str:
        """What the caller gets: the completion, after its prompt where that is asked for."""
        new = completion.text or ""
        if self.clean_up:  # over the whole, as transformers does: " ." at the seam counts too
            new = tidy(prompt + new)[len(tidy(prompt)) :]
        return prompt + new if self.full_text else new


class LocalPipeline:
    """An engine loop, a task, and the settings that calls start from. Safe to share between threads and event loops.

    Args:
        defaults: settings of the model or of transformers, which give way to
        given: the user's; names of transformers' GenerationConfig, and `FORMAT`'s.

    Raises:
        ValueError: a setting is unknown or cannot be done; the message names it.
    """

    def __init__(self, engine: Engine, task: str, defaults: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        self.task, self.tokenizer = task, engine.tokenizer
        self.model = getattr(engine, "model", None)
        self._defaults, self._given = dict(defaults), dict(given)
        self._end_ids: set[int] = getattr(engine, "_end_ids", set())
        self.call()  # a wrong setting is told here, not at the first prompt
        self.loop = EngineLoop(engine)
        self.close = weakref.finalize(self, self.loop.close)

    @classmethod
    def load(cls, settings: EngineSettings, given: Mapping[str, Any]) -> LocalPipeline:
        """Load the settings' engine. Raises ValueError."""
        from hfray.models.source import prepare

        folder = prepare(settings)
        engine = load_engine(settings, folder=folder)
        if settings.task in SEQ2SEQ:
            return cls(engine, settings.task, seq2seq_defaults(engine), given)
        return cls(engine, settings.task, causal_defaults(folder), given)

    @classmethod
    def around(cls, pipe: Any, given: Mapping[str, Any]) -> LocalPipeline:
        """Drive the model of a transformers pipeline, with the pipeline's settings. Raises ValueError."""
        from hfray.engines.torch.causal import TransformersEngine
        from hfray.engines.torch.checkpoint import TransformersTokenizer

        if pipe.task not in TASKS:
            raise ValueError(f"Got invalid task {pipe.task}, currently only {TASKS} are supported")
        if type(pipe.model).__module__.startswith("optimum."):
            raise ValueError(
                f"pipeline.model is a {type(pipe.model).__name__}: an OpenVINO model cannot be taken out of its "
                "pipeline. Use HuggingFacePipeline.from_model_id(folder, backend='openvino')."
            )
        if pipe.model.config.is_encoder_decoder:
            from hfray.engines.torch.seq2seq import Seq2SeqEngine

            engine = Seq2SeqEngine(pipe.model, pipe.tokenizer, task=pipe.task, context=None)
            return cls(engine, pipe.task, seq2seq_defaults(engine), given)
        defaults, own = pipeline_settings(pipe)
        with ending_at(pipe.model, own.pop("eos_token_id", None)):
            tokenizer = TransformersTokenizer(pipe.tokenizer)
            engine = TransformersEngine(pipe.model, tokenizer, context=positions(pipe.model.config))
        return cls(engine, pipe.task, defaults, {**own, **given})

    def __deepcopy__(self, memo: dict) -> LocalPipeline:
        return self  # copies of a LangChain object share the engine

    # --- settings ----------------------------------------------------------------------------------------------

    def call(self, given: Mapping[str, Any] | None = None, stop: Sequence[str] | None = None) -> Call:
        """The settings of one call: the pipeline's, under what is given now. Raises ValueError."""
        given = {k: v for k, v in {**self._given, **(given or {})}.items() if v is not None}
        values = {**self._defaults, **given}
        if "max_length" in given and "max_new_tokens" not in given:
            values.pop("max_new_tokens", None)  # a default must not beat what was asked for
        causal = self.task not in SEQ2SEQ
        full_text, clean_up, special = (values.pop(name, None) for name in FORMAT)
        others = set(_listed(values.pop("eos_token_id", None))) - self._end_ids
        if others:
            raise ValueError(f"eos_token_id={sorted(others)}: does not end this model's texts. Use stop=[...].")
        params = generation_params(values, causal).with_stop(stop)
        return Call(
            params=params,
            full_text=causal if full_text is None else bool(full_text),
            clean_up=causal if clean_up is None else bool(clean_up),
            add_special_tokens=True if special is None else bool(special),
            # Without a seed every call draws anew, from Python's random: transformers.set_seed makes it repeatable.
            sample=0 if "seed" in values or not params.sampling else random.getrandbits(31),
        )

    # --- calls -------------------------------------------------------------------------------------------------

    def complete(self, prompts: Sequence[str], call: Call) -> list[Completion]:
        """Complete prompts together; in their order. Raises RequestError at the first that fails, EngineDiedError."""
        with self._submitted(prompts, call) as handles:
            for handle in as_completed(handles):
                _checked(handle.result())
            return [handle.result() for handle in handles]

    async def acomplete(self, prompts: Sequence[str], call: Call) -> list[Completion]:
        """As `complete`; a caller that is cancelled cancels its prompts."""
        handles: list[Handle] = []
        left = threading.Event()
        try:
            # Tokenizing takes long enough to block an event loop.
            await asyncio.to_thread(self._submit, prompts, call, handles, left)
            async for _, piece in merge(handles):
                if piece.completion is not None:
                    _checked(piece.completion)
            return [handle.result() for handle in handles]
        finally:
            left.set()
            for handle in list(handles):
                handle.cancel()

    def stream(self, prompt: str, call: Call) -> Iterator[str | Completion]:
        """Pieces of text as they come, and at last the Completion; a caller that leaves early frees the engine."""
        with self._submitted([prompt], call, stream=True) as (handle,):
            for piece in handle:
                yield from _parts(piece)

    async def astream(self, prompt: str, call: Call) -> AsyncIterator[str | Completion]:
        """As `stream`."""
        with self._submitted([prompt], call, stream=True) as (handle,):
            async for piece in handle:
                for part in _parts(piece):
                    yield part

    @contextlib.contextmanager
    def _submitted(self, prompts: Sequence[str], call: Call, stream: bool = False) -> Iterator[list[Handle]]:
        """The prompts' handles; at the end, what has not finished is cancelled."""
        handles: list[Handle] = []
        try:
            self._submit(prompts, call, handles, stream=stream)
            yield handles
        finally:
            for handle in handles:
                handle.cancel()

    def _submit(
        self,
        prompts: Sequence[str],
        call: Call,
        handles: list[Handle],
        left: threading.Event | None = None,
        stream: bool = False,
    ) -> None:
        """Send prompts to the engine; stops if the caller leaves meanwhile."""
        for text in prompts:
            handles.append(self.loop.submit(call.prompt(text), call.params, sample=call.sample, stream=stream))
            if left is not None and left.is_set():
                for handle in handles:
                    handle.cancel()
                return


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def tidy(text: str) -> str:
    """Without the spaces that tokenizers leave before punctuation: transformers' `clean_up_tokenization`."""
    for spaced, closed in TIDY:
        text = text.replace(spaced, closed)
    return text


def _parts(piece: Piece) -> Iterator[str | Completion]:
    if piece.text:
        yield piece.text
    if piece.completion is not None:
        yield _checked(piece.completion)


def _checked(completion: Completion) -> Completion:
    if completion.error is not None:
        raise RequestError(completion.error)
    return completion
