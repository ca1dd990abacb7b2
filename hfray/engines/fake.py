"""An engine without a model: deterministic text, and faults on demand, for trying and testing a pipeline."""

from __future__ import annotations

import ctypes
import os
import re
import time
import zlib
from collections import deque
from collections.abc import Sequence

from hfray.engines.base import Engine, Request, RequestError, StepOutput
from hfray.engines.fakeanswers import byte_tokenizer, fitting_answer
from hfray.engines.guides import Guides
from hfray.response import ResponseFormat

HOLD_POLL_SECONDS = 0.02
WORDS = "the a model row answer is of and to in it that was for on are as with they at be this from have or".split()


class FakeTokenizer:
    """One token per UTF-8 byte; chat messages become `role: content` lines."""

    bos_id: int | None = 1
    has_chat_template = True

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode("utf-8", "surrogatepass"))

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(token_ids).decode("utf-8", "replace")

    def chat(self, messages: list[dict[str, str]]) -> str:
        return "".join(f"{m['role']}: {m['content']}\n" for m in messages) + "assistant: "


class FakeEngine(Engine):
    """Writes words chosen by the prompt's checksum and the row's seed, `tokens_per_step` bytes per step.

    Args:
        capacity: how many requests run at once.
        context_length: in bytes of prompt and completion.
        precision: what the engine says that it computes in.
        tokens_per_step: bytes written per request and step.
        step_seconds: how long each step takes.
        fail_on, die_on, hang_on, freeze_on: regular expressions on the prompt. A row that matches gets an error, ends
            the process, blocks the step forever, or blocks the step while holding Python's lock, so that no other
            thread runs.
        answer_log: a file. Each finished row appends a line with the process id. The lines show which process
            generated how many rows, and whether rows ran twice.
        hold_after, hold_until: after `hold_after` finished rows, wait until the file `hold_until` exists. Tests use
            this to act in the middle of a job, however fast the machine is.
    """

    def __init__(
        self,
        *,
        capacity: int = 64,
        context_length: int = 1 << 20,
        precision: str = "fp32",
        tokens_per_step: int = 1 << 20,
        step_seconds: float = 0.0,
        fail_on: str | None = None,
        die_on: str | None = None,
        hang_on: str | None = None,
        freeze_on: str | None = None,
        answer_log: str | None = None,
        hold_after: int = 0,
        hold_until: str | None = None,
    ) -> None:
        self.tokenizer = FakeTokenizer()
        self.capacity = capacity
        self.context_length = context_length
        self.precision = precision
        self._tokens_per_step = tokens_per_step
        self._step_seconds = step_seconds
        self._faults = {
            name: re.compile(pattern.encode())
            for name, pattern in (("fail", fail_on), ("die", die_on), ("hang", hang_on), ("freeze", freeze_on))
            if pattern
        }
        self._hold_after, self._hold_until, self._answered = hold_after, hold_until, 0
        self._waiting: deque[Request] = deque()
        self._running: dict[int, tuple[Request, bytes, int]] = {}
        self._guides = Guides(byte_tokenizer)
        self._log = open(answer_log, "ab", buffering=0) if answer_log else None  # noqa: SIM115  open as long as the engine

    def prepare(self, form: ResponseFormat) -> None:
        self._guides.prepare(form)

    def add(self, request: Request) -> None:
        if request.params.logprobs is not None:
            raise RequestError(
                f"generation.logprobs={request.params.logprobs}: backend=fake has no model, so it has no log-probabilities"
            )
        self._waiting.append(request)

    def step(self) -> list[StepOutput]:
        if self._hold_until and self._answered >= self._hold_after and not os.path.exists(self._hold_until):
            time.sleep(HOLD_POLL_SECONDS)
            return []
        if self._step_seconds:
            time.sleep(self._step_seconds)
        while self._waiting and len(self._running) < self.capacity:
            request = self._waiting.popleft()
            self._running[request.id] = (request, self._write(request), 0)
        self.num_running = len(self._running)
        return [self._advance(*entry) for entry in list(self._running.values())]

    def cancel(self, request_id: int) -> None:
        if self._running.pop(request_id, None) is None:
            self._waiting = deque(request for request in self._waiting if request.id != request_id)

    @property
    def num_unfinished(self) -> int:
        return len(self._running) + len(self._waiting)

    def _advance(self, request: Request, text: bytes, done: int) -> StepOutput:
        fault = self._fault(request) if self._faults else None
        if fault == "fail":
            del self._running[request.id]
            return StepOutput(request.id, error="the fake engine was told to fail on this row")
        until = min(len(text), done + self._tokens_per_step)
        output = StepOutput(request.id, list(text[done:until]))
        if until == len(text):
            output.finish_reason = "length" if len(text) >= request.max_new_tokens else "stop"
            del self._running[request.id]
            self._answered += 1
            if self._log:
                self._log.write(b"%d\n" % os.getpid())
        else:
            self._running[request.id] = (request, text, until)
        return output

    def _fault(self, request: Request) -> str | None:
        prompt = bytes(request.prompt_ids)
        for name, pattern in self._faults.items():
            if pattern.search(prompt):
                if name == "die":
                    os._exit(1)
                if name == "freeze":
                    ctypes.PyDLL(None).sleep(1 << 30)
                while name == "hang":
                    time.sleep(1)
                return name
        return None

    def _write(self, request: Request) -> bytes:
        """4 to 11 words, cut at `max_new_tokens` bytes; with ignore_eos, exactly `max_new_tokens` bytes.

        If the answer must have a form: values that fit it.
        """
        number = zlib.crc32(bytes(request.prompt_ids), request.seed)
        if request.params.response is not None:
            form = request.params.response
            return fitting_answer(self._guides.start(form), number, request.max_new_tokens, form.after_thought)
        count = request.max_new_tokens if request.params.ignore_eos else 4 + number % 8
        words = [WORDS[(number >> (i % 24)) % len(WORDS)] for i in range(count)]
        return (" " + " ".join(words)).encode()[: request.max_new_tokens]
