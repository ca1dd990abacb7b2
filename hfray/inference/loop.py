"""The one loop around an engine: batch worker, online server and LangChain all generate through it."""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from hfray.completion import Completion, Prompt
from hfray.engines.base import Engine, GenerationParams, Request, RequestError, StepOutput
from hfray.errors import EngineDiedError
from hfray.inference.dedup import RecentCompletions, share_key
from hfray.inference.detokenizer import CompletionText
from hfray.inference.stats import LoopStats

FULL = 0.8  # a step counts as full when at least this share of the engine's capacity is running


@dataclass(slots=True)
class _Sequence:
    request: Request
    text: CompletionText
    on_done: Callable[[Completion | EngineDiedError], None]
    on_text: Callable[[str], None] | None
    on_step: Callable[[StepOutput], None] | None
    key: bytes | None = None  # of the prompts that share this completion
    followers: list[Callable[[Completion | EngineDiedError], None]] = field(default_factory=list)
    num_generated: int = 0
    logprobs: list = field(default_factory=list)


class EngineLoop:
    """A thread that steps an engine for as long as anything is in it.

    Thread-safe. Callbacks run on the loop's thread and must return at once. When the engine dies, every request in
    it gets the EngineDiedError, and so does every later one.
    """

    def __init__(self, engine: Engine, on_death: Callable[[EngineDiedError], None] | None = None) -> None:
        self.engine = engine
        self.stats = LoopStats(capacity=engine.capacity)
        self._on_death = on_death
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._sequences: dict[int, _Sequence] = {}
        self._leaders: dict[bytes, _Sequence] = {}
        self._recent = RecentCompletions()
        self._ids = itertools.count(1)
        self._closing = self._ended = False
        self._died: EngineDiedError | None = None
        self._step_started: float | None = None
        self._thread = threading.Thread(target=self._run, name="engine-loop", daemon=True)
        self._thread.start()

    # --- callers' side -----------------------------------------------------------------------------------------

    def submit(
        self,
        prompt: Prompt,
        params: GenerationParams,
        on_done: Callable[[Completion | EngineDiedError], None],
        on_text: Callable[[str], None] | None = None,
        sample: int | str = 0,
        on_step: Callable[[StepOutput], None] | None = None,
        share: bool = False,
    ) -> int | None:
        """Send a prompt to the engine; returns its id for `cancel`, or None where it failed at once.

        Args:
            on_done: called once, with the completion (its `error` set if the prompt was at fault), or the death.
            on_text: called with each new piece of text, for streaming.
            sample: which of several completions of one prompt this is, a number or its row's id; each has its own seed.
            on_step: called with each step's own output, before `on_text`: for timing, and log-probabilities as they come.
            share: unless it is sampled, take the completion of an equal prompt that is under way or was done lately;
                it is then called with that one's, without token ids, and cannot be cancelled.
        """
        try:
            request = self._request(prompt, params, sample)
        except RequestError as error:
            self.stats.failed_rows += 1
            on_done(Completion(error=str(error)))
            return None
        before = request.prompt_ids if self.engine.continues_prompt else []
        text = CompletionText(self.engine.tokenizer, before, params.stop_strings, on_text is not None)
        key = share_key(prompt, params) if share and not params.sampling else None
        sequence = _Sequence(request, text, on_done, on_text, on_step, key)
        self._inbox.put(lambda: self._add(sequence))
        if self._ended:
            self._drain()
        return request.id

    def cancel(self, request_id: int) -> None:
        """Drop a request; its slot is free from the next step on. Its callbacks are not called any more."""
        self._inbox.put(lambda: self._cancel(request_id))

    def expect_end(self) -> None:
        """Say that no more prompts will come: the engine now takes the longest first, so that the tail is short."""
        self.engine.ending = True

    def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> list[Completion]:
        """Complete prompts and wait; completions are in the prompts' order. Raises EngineDiedError."""
        futures: list[Future[Completion]] = [Future() for _ in prompts]
        for prompt, future in zip(prompts, futures, strict=True):
            self.submit(prompt, params, lambda outcome, future=future: resolve(future, outcome))
        return [future.result() for future in futures]

    def stalled_for(self) -> float:
        """Seconds that the step under way has taken so far; 0 between steps."""
        started = self._step_started
        return 0.0 if started is None else time.monotonic() - started

    def close(self) -> None:
        """Stop after the step under way and free the engine; requests still in it die."""
        self._closing = True
        self._inbox.put(lambda: None)
        if threading.current_thread() is not self._thread:  # a finalizer may run on any thread
            self._thread.join()

    def _request(self, prompt: Prompt, params: GenerationParams, sample: int | str) -> Request:
        tokenizer = self.engine.tokenizer
        ids = tokenizer.encode(prompt.text, add_special_tokens=not prompt.special_tokens_in_text)
        if not ids:  # as transformers' generate: an empty prompt starts from the beginning-of-sequence token
            if tokenizer.bos_id is None:
                raise RequestError("prompt is empty, and the model has no token to begin with")
            ids = [tokenizer.bos_id]
        room = self.engine.room(params, len(ids))
        seed = params.row_seed(prompt.text, sample) if params.sampling else 0
        return Request(id=next(self._ids), prompt_ids=ids, max_new_tokens=room, params=params, seed=seed)

    # --- the loop's own thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing:
                self._read_inbox()
                if self.engine.num_unfinished:
                    self._step()
            self._die(EngineDiedError("the engine was closed"))
        except BaseException as error:
            self._die(EngineDiedError(f"{type(error).__name__}: {error}"))
        self.engine.close()
        while not (self._closing and self._inbox.empty()):  # requests that come later learn of the death too
            self._inbox.get()()
        self._ended = True  # who submits from now on reads the inbox too
        self._drain()

    def _drain(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._inbox.get_nowait()()

    def _read_inbox(self) -> None:
        if not self.engine.num_unfinished:
            self.stats.running = self.stats.waiting = 0
            self._inbox.get()()
        self._drain()

    def _step(self) -> None:
        self._step_started = started = time.monotonic()
        unfinished = self.engine.num_unfinished
        outputs = self.engine.step()
        self._step_started = None
        stats, running = self.stats, self.engine.num_running
        stats.busy_seconds += time.monotonic() - started
        stats.steps += 1
        if running >= FULL * self.engine.capacity:
            stats.full_steps += 1
            stats.last_full = time.time()
        stats.prefix_tokens = self.engine.prefix_tokens
        stats.running, stats.waiting = running, max(0, unfinished - running)
        for output in outputs:
            self._advance(output)

    def _add(self, sequence: _Sequence) -> None:
        if self._died is not None:
            sequence.on_done(self._died)
            return
        if sequence.key is not None and self._shares(sequence):
            return
        try:
            self.engine.add(sequence.request)
        except RequestError as error:
            self._finish(sequence, StepOutput(sequence.request.id, error=str(error)))
            return
        self._sequences[sequence.request.id] = sequence

    def _shares(self, sequence: _Sequence) -> bool:
        """Whether an equal prompt's completion serves this one; if not, it is the one that serves others."""
        done = self._recent.get(sequence.key)
        if done is not None:
            self._serve(sequence.on_done, done)
            return True
        leader = self._leaders.setdefault(sequence.key, sequence)
        if leader is not sequence:
            leader.followers.append(sequence.on_done)
        return leader is not sequence

    def _serve(self, on_done: Callable[[Completion | EngineDiedError], None], completion: Completion) -> None:
        stats = self.stats
        stats.rows += 1
        stats.shared_rows += 1
        stats.failed_rows += completion.error is not None
        stats.saved_prompt_tokens += completion.num_prompt_tokens
        stats.saved_tokens += completion.num_generated_tokens
        on_done(completion)

    def _cancel(self, request_id: int) -> None:
        sequence = self._sequences.get(request_id)
        if sequence is None or sequence.key is not None or self._died is not None:
            return
        del self._sequences[request_id]
        self.engine.cancel(request_id)

    def _advance(self, output: StepOutput) -> None:
        sequence = self._sequences.get(output.request_id)
        if sequence is None:
            return
        sequence.num_generated += len(output.token_ids)
        sequence.logprobs.extend(output.logprobs)
        if sequence.on_step is not None:
            sequence.on_step(output)
        delta = sequence.text.push(output.token_ids)
        if sequence.text.stopped and output.finish_reason is None:
            self.engine.cancel(output.request_id)
            output.finish_reason = "stop"
        ended = output.finish_reason is not None or output.error is not None
        if ended:
            delta += sequence.text.finish()
            del self._sequences[output.request_id]
        if delta and sequence.on_text is not None:
            sequence.on_text(delta)
        if ended:
            self._finish(sequence, output)

    def _finish(self, sequence: _Sequence, output: StepOutput) -> None:
        completion = Completion(num_prompt_tokens=len(sequence.request.prompt_ids), error=output.error)
        if output.error is None:
            completion.text = sequence.text.text
            completion.finish_reason = "stop" if sequence.text.stopped else output.finish_reason
            completion.num_generated_tokens = sequence.num_generated
            completion.token_ids = sequence.text.token_ids
            completion.logprobs = sequence.logprobs
        stats = self.stats
        stats.rows += 1
        stats.failed_rows += output.error is not None
        stats.prompt_tokens += completion.num_prompt_tokens
        stats.generated_tokens += completion.num_generated_tokens
        sequence.on_done(completion)
        if sequence.key is None:
            return
        self._leaders.pop(sequence.key, None)
        lean = completion.without_tokens()
        if completion.error is None:
            self._recent.put(sequence.key, lean)
        for follower in sequence.followers:
            self._serve(follower, lean)

    def _die(self, error: EngineDiedError) -> None:
        self._died = error
        if self._on_death is not None and not self._closing:
            self._on_death(error)
        for sequence in self._sequences.values():
            for on_done in (sequence.on_done, *sequence.followers):
                on_done(error)
        self._sequences.clear()
        self._leaders.clear()


def resolve(future: Future[Completion], outcome: Completion | EngineDiedError) -> None:
    """Put an outcome into a future; one that its waiter has cancelled is left alone."""
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, EngineDiedError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
