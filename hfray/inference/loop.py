"""The one loop around an engine: batch worker, online service and LangChain classes generate through it."""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Callable, Sequence

from hfray.completion import Completion, Prompt
from hfray.engines.base import Engine, GenerationParams, Request, RequestError, StepOutput
from hfray.errors import EngineDiedError
from hfray.inference.dedup import Dedup, dedup_key
from hfray.inference.detokenizer import CompletionText
from hfray.inference.handle import Handle
from hfray.inference.sequence import EngineSequence
from hfray.inference.stats import LoopStats

FULL = 0.8  # a step counts as full if at least this share of the engine's capacity is running


class EngineLoop:
    """A thread that steps an engine while there is work.

    Thread-safe. When the engine dies, every request in it fails with EngineDiedError, and so does every later one.

    Args:
        on_death: called on the loop's thread when the engine dies.

    Attributes:
        after_step: called on the loop's thread after each step; must return at once.
    """

    def __init__(self, engine: Engine, on_death: Callable[[EngineDiedError], None] | None = None) -> None:
        self.engine = engine
        self.after_step: Callable[[], None] | None = None
        self.stats = LoopStats(capacity=engine.capacity)
        self._on_death = on_death
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._sequences: dict[int, EngineSequence] = {}
        self._dedup: Dedup[EngineSequence] = Dedup()
        self._ids = itertools.count(1)
        self._closing = self._ended = False
        self._died: EngineDiedError | None = None
        self._step_started: float | None = None
        self._thread = threading.Thread(target=self._run, name="engine-loop", daemon=True)
        self._thread.start()

    # --- the callers' side -------------------------------------------------------------------------------------

    def submit(
        self,
        prompt: Prompt,
        params: GenerationParams,
        *,
        sample: int | str = 0,
        share: bool = False,
        stream: bool = False,
    ) -> Handle:
        """Send a prompt to the engine.

        Args:
            sample: number or row id; each has its own seed, so that equal prompts get different sampled completions.
            share: unless the parameters sample, compute equal prompts once. A shared completion has no token ids and
                no log-probabilities.
            stream: the handle's iterator gives pieces as they are generated. Not together with `share`.
        """
        if share and stream:
            raise ValueError("share and stream exclude each other")
        try:
            request = self._request(prompt, params, sample, stream)
        except RequestError as error:
            return self.refuse(str(error))
        handle = Handle(self._drop, stream=stream)
        handle.request_id = request.id
        before = request.prompt_ids if self.engine.continues_prompt else []
        text = CompletionText(self.engine.tokenizer, before, params.stop_strings, stream)
        key = dedup_key(prompt, params) if share and not params.sampling else None
        sample = sample if params.sampling else ""  # a greedy text depends on the prompt alone, also when tried again
        sequence = EngineSequence(request, prompt, sample, text, [handle], key)
        self._post(lambda: self._add(sequence, handle))
        return handle

    def refuse(self, error: str) -> Handle:
        """The finished handle of a row that cannot reach the engine. The row counts as failed."""
        self._post(self._count_refused)
        return Handle.finished(Completion(error=error))

    def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> list[Completion]:
        """Complete prompts and wait; completions are in the prompts' order. Raises EngineDiedError."""
        handles = [self.submit(prompt, params) for prompt in prompts]
        return [handle.result() for handle in handles]

    def expect_end(self) -> None:
        """Announce that no more prompts will come: the engine starts the longest first, which shortens the tail."""
        self.engine.ending = True

    def stalled_for(self) -> float:
        """Seconds since the current step began; 0 between steps."""
        started = self._step_started
        return 0.0 if started is None else time.monotonic() - started

    def close(self) -> None:
        """Stop after the current step and free the engine. Unfinished requests fail with EngineDiedError."""
        self._closing = True
        self._inbox.put(lambda: None)
        if threading.current_thread() is not self._thread:  # a finalizer may run on any thread
            self._thread.join()

    def _request(self, prompt: Prompt, params: GenerationParams, sample: int | str, stream: bool) -> Request:
        tokenizer = self.engine.tokenizer
        ids = tokenizer.encode(prompt.text, add_special_tokens=not prompt.special_tokens_in_text)
        if not ids:  # transformers' generate starts an empty prompt from the beginning-of-sequence token too
            if tokenizer.bos_id is None:
                raise RequestError("the prompt is empty, and the model has no beginning-of-sequence token")
            ids = [tokenizer.bos_id]
        room = self.engine.room(params, len(ids))
        if params.response is not None:
            self.engine.prepare(params.response)
        seed = params.row_seed(prompt.text, sample) if params.sampling else 0
        may_wait = not stream and not params.stop_strings  # tokens behind a stop string would be computed in vain
        return Request(
            id=next(self._ids), prompt_ids=ids, max_new_tokens=room, params=params, seed=seed, may_wait=may_wait
        )

    def _drop(self, handle: Handle) -> None:
        self._post(lambda: self._cancel(handle))

    def _post(self, action: Callable[[], None]) -> None:
        self._inbox.put(action)
        if self._ended:  # the loop's thread reads the inbox no more
            self._drain()

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
        while not (self._closing and self._inbox.empty()):  # later requests fail with the same error
            self._inbox.get()()
        self._ended = True
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
        now, stats, running = time.monotonic(), self.stats, self.engine.num_running
        stats.busy_seconds += now - started
        stats.steps += 1
        if running >= FULL * self.engine.capacity:
            stats.full_steps += 1
            stats.last_full = time.time()
        stats.prefix_tokens = self.engine.prefix_tokens
        stats.running, stats.waiting = running, max(0, unfinished - running)
        for output in outputs:
            self._advance(output, now)
        if self.after_step is not None:
            self.after_step()

    def _add(self, sequence: EngineSequence, handle: Handle) -> None:
        if handle.done():  # cancelled on its way in
            return
        if self._died is not None:
            handle.finish(self._died)
            return
        if sequence.key is not None:
            recent = self._dedup.completion(sequence.key)
            if recent is not None:
                self._finish_shared(handle, recent)
                return
            leader = self._dedup.leader(sequence.key, sequence)
            if leader is not sequence:
                handle.request_id = leader.request.id
                leader.handles.append(handle)
                return
        self._run_sequence(sequence)

    def _run_sequence(self, sequence: EngineSequence) -> None:
        self._sequences[sequence.request.id] = sequence  # before `add`: if the engine dies there, `_die` finds it
        self.stats.start(sequence.request.max_new_tokens)
        try:
            self.engine.add(sequence.request)
        except RequestError as error:
            self._forget(sequence)
            self._finish(sequence, StepOutput(sequence.request.id, error=str(error)))

    def _cancel(self, handle: Handle) -> None:
        sequence = self._sequences.get(handle.request_id)
        if sequence is None or handle not in sequence.handles:
            return
        sequence.handles.remove(handle)
        if sequence.handles:  # others wait for the same completion
            return
        self._forget(sequence)
        self.engine.cancel(handle.request_id)
        if sequence.key is not None:
            self._dedup.finish(sequence.key)

    def _advance(self, output: StepOutput, now: float) -> None:
        sequence = self._sequences.get(output.request_id)
        if sequence is None:
            return
        leader = sequence.handles[0]
        self.stats.advance(sequence.progress, len(sequence.request.prompt_ids), output)
        sequence.logprobs.extend(output.logprobs)
        if output.token_ids:
            leader.count(len(output.token_ids), now)
        delta = sequence.text.push(output.token_ids)
        if sequence.text.stopped and output.finish_reason is None:
            self.engine.cancel(output.request_id)
            output.finish_reason = "stop"
        ended = output.finish_reason is not None or output.error is not None
        if ended:
            delta += sequence.text.finish()
            self._forget(sequence)
        if leader.streams:
            wanted = sequence.request.params.logprobs is not None
            tokens = zip(output.token_ids, output.logprobs if wanted else [], strict=False)
            leader.push(delta, [(token, *logprob) for token, logprob in tokens])
        if ended:
            self._finish(sequence, output)

    def _forget(self, sequence: EngineSequence) -> None:
        del self._sequences[sequence.request.id]
        self.stats.running_lengths[sequence.progress.bucket] -= 1

    def _finish(self, sequence: EngineSequence, output: StepOutput) -> None:
        completion = sequence.completion(output)
        again = sequence.next_try(completion, self.engine, next(self._ids))
        if again is not None:
            self._run_sequence(again)
            return
        if completion.error is not None:
            completion.finish_reason = "error"
        stats = self.stats
        stats.rows += 1
        stats.failed_rows += completion.error is not None
        stats.answer_lengths[sequence.progress.bucket] += 1
        leader, *followers = sequence.handles
        leader.finish(completion)
        if sequence.key is not None:
            lean = completion.without_tokens()
            self._dedup.finish(sequence.key, lean)
            for follower in followers:
                self._finish_shared(follower, lean)

    def _count_refused(self) -> None:
        self.stats.rows += 1
        self.stats.answer_lengths[0] += 1
        self.stats.failed_rows += 1

    def _finish_shared(self, handle: Handle, completion: Completion) -> None:
        stats = self.stats
        stats.rows += 1
        stats.shared_rows += 1
        stats.answer_lengths[0] += 1
        stats.failed_rows += completion.error is not None
        stats.saved_prompt_tokens += completion.num_prompt_tokens
        stats.saved_tokens += completion.num_generated_tokens
        handle.finish(completion)

    def _die(self, error: EngineDiedError) -> None:
        self._died = error
        if self._on_death is not None and not self._closing:
            self._on_death(error)
        for sequence in self._sequences.values():
            for handle in sequence.handles:
                handle.finish(error)
        self._sequences.clear()
