"""An engine loop with a task and default settings: hfray's counterpart of transformers' `pipeline`."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import weakref
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import replace
from typing import Any

from hfray.completion import Completion
from hfray.engines.base import Engine
from hfray.engines.load import SEQ2SEQ
from hfray.errors import RequestError
from hfray.inference.handle import Handle, Piece, merge
from hfray.inference.loop import EngineLoop
from hfray.langchain.call import Call
from hfray.langchain.settings import generation_params, response_form
from hfray.params import GenerationParams


class LocalPipeline:
    """An engine loop with a task and default settings. Threads and event loops may share it.

    Args:
        defaults: settings of the model or of transformers.
        given: the user's settings, which win. Names as in transformers' GenerationConfig and in `settings.FORMAT`.

    Raises:
        ValueError: a setting is unknown or not supported; the message names the setting.
    """

    def __init__(self, engine: Engine, task: str, defaults: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        self.task, self.tokenizer, self._engine = task, engine.tokenizer, engine
        self.model = getattr(engine, "model", None)
        self._defaults, self._given = dict(defaults), dict(given)
        self._end_ids: set[int] = getattr(engine, "end_ids", set())
        self._top_logprobs = engine.top_logprobs
        self.call()  # reports a wrong setting now instead of at the first prompt
        self.loop = EngineLoop(engine)
        self.close = weakref.finalize(self, self.loop.close)

    def call(self, given: Mapping[str, Any] | None = None, stop: Sequence[str] | None = None) -> Call:
        """The settings of one call: the pipeline's own settings, overridden by `given`. Raises ValueError."""
        given = {k: v for k, v in {**self._given, **(given or {})}.items() if v is not None}
        values = {**self._defaults, **given}
        if "max_length" in given and "max_new_tokens" not in given:
            values.pop("max_new_tokens", None)  # the user's max_length wins over a default
        causal = self.task not in SEQ2SEQ
        form = response_form(values)
        full_text = values.pop("return_full_text", causal and form is None)
        clean_up = values.pop("clean_up_tokenization_spaces", causal)
        special, prefix = values.pop("add_special_tokens", True), values.pop("prefix", "")
        others = set(_listed(values.pop("eos_token_id", None))) - self._end_ids
        if others:
            raise ValueError(f"eos_token_id={sorted(others)}: does not end this model's texts. Use stop=[...].")
        params = replace(generation_params(values, causal).with_stop(list(stop or ())), response=form)
        if form is not None:
            self._engine.prepare(form)
        if params.logprobs and not self._top_logprobs:
            raise ValueError(
                f"logprobs={params.logprobs}: this engine does not report the likeliest tokens. Use logprobs=0 for the "
                "generated tokens' own log-probabilities."
            )
        return Call(
            params=self._with_prefix(prefix, params) if prefix and causal else params,
            full_text=bool(full_text),
            clean_up=bool(clean_up),
            add_special_tokens=bool(special),
            prefix=prefix,
            # Without a seed, every call draws a new text. transformers.set_seed makes the draws repeatable.
            sample=0 if "seed" in values or not params.sampling else random.getrandbits(31),
        )

    def _with_prefix(self, prefix: str, params: GenerationParams) -> GenerationParams:
        """The parameters for prompts behind a prefix: `max_length` does not count the prefix, as in transformers."""
        if params.max_length is None:
            return params
        length = len(self.tokenizer.encode(prefix, add_special_tokens=False))
        return replace(params, max_length=params.max_length + length)

    def logprobs(self, completion: Completion) -> list[dict[str, Any]]:
        """Log-probabilities of the generated tokens, and of the likeliest tokens at each position."""
        if len(completion.logprobs) != len(completion.token_ids):
            raise RequestError("logprobs: this model's engine does not compute log-probabilities. Remove the setting.")
        return [
            {
                "token": self.tokenizer.decode([token]),
                "logprob": own,
                "top_logprobs": [{"token": self.tokenizer.decode([i]), "logprob": value} for i, value in likeliest],
            }
            for token, (own, likeliest) in zip(completion.token_ids, completion.logprobs, strict=True)
        ]

    # --- calls -------------------------------------------------------------------------------------------------

    def complete(self, prompts: Sequence[str], call: Call) -> list[Completion]:
        """Complete prompts together, in order. Raises the first prompt's RequestError, or EngineDiedError."""
        with self._submitted(prompts, call) as handles:
            for handle in as_completed(handles):
                _checked(handle.result())
            return [handle.result() for handle in handles]

    async def acomplete(self, prompts: Sequence[str], call: Call) -> list[Completion]:
        """As `complete`. Cancelling the call cancels its prompts."""
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

    def stream(self, prompt: str, call: Call) -> Generator[str | Completion, None, None]:
        """Pieces of text as they arrive, then the Completion. Closing the iterator early frees the engine's slot."""
        with self._submitted([prompt], call, stream=True) as (handle,):
            for piece in handle:
                yield from _parts(piece)

    async def astream(self, prompt: str, call: Call) -> AsyncGenerator[str | Completion, None]:
        """As `stream`."""
        with self._submitted([prompt], call, stream=True) as (handle,):
            async for piece in handle:
                for part in _parts(piece):
                    yield part

    @contextlib.contextmanager
    def _submitted(self, prompts: Sequence[str], call: Call, stream: bool = False) -> Iterator[list[Handle]]:
        """The handles of the prompts. At the end, unfinished prompts are cancelled."""
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
        """Send prompts to the engine, until all are sent or `left` is set."""
        for text in prompts:
            handles.append(self.loop.submit(call.prompt(text), call.params, sample=call.sample, stream=stream))
            if left is not None and left.is_set():
                for handle in handles:
                    handle.cancel()
                return


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _parts(piece: Piece) -> Iterator[str | Completion]:
    if piece.text:
        yield piece.text
    if piece.completion is not None:
        yield _checked(piece.completion)


def _checked(completion: Completion) -> Completion:
    if completion.error is not None:
        raise RequestError(completion.error)
    return completion
