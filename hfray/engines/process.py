"""An engine that runs in a child process.

OpenVINO GenAI holds Python's lock during the whole step (2026.4), so other threads of its process run only between
steps. A batch job can live with this. A server reads requests and writes tokens all the time: with the engine in the
server's process, the first token took seconds. Here each step is one message to the child and one answer, and the
server's process holds no lock while it waits.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from hfray.engines.base import Engine, Request, RequestError, StepOutput, Tokenizer
from hfray.engines.load import SEQ2SEQ, load_engine
from hfray.errors import EngineDiedError
from hfray.response import ResponseFormat

CLOSE_SECONDS = 5.0


class ProcessEngine(Engine):
    """The engine of `settings` in a child process. The child ends when this object is closed or this process ends.

    Args:
        settings, folder, threads: as `load_engine` takes them.
        tokenizer: the tokenizer of the same model, for this process.

    Raises:
        ValueError: as `load_engine`.
        EngineDiedError: the child ended while it loaded the model.
    """

    def __init__(self, settings: Any, folder: Path, threads: int | None, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._connection, theirs = Pipe()
        command = [sys.executable, "-m", __name__, str(theirs.fileno())]
        self._child = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        self._unfinished: set[int] = set()
        self._adds: list[Request] = []
        self._cancels: list[int] = []
        loaded = self._ask((settings, folder, threads))
        self.capacity, self.context_length, self.precision, self.top_logprobs = loaded

    def prepare(self, form: ResponseFormat) -> None:
        """Check the form here: only OpenVINO runs in a child, and GenAI compiles forms itself."""
        from hfray.engines.genaiforms import structured_output

        structured_output(form)

    def add(self, request: Request) -> None:
        self._unfinished.add(request.id)
        self._adds.append(request)

    def step(self) -> list[StepOutput]:
        message, self._adds, self._cancels = (self._adds, self._cancels), [], []
        outputs, self.num_running, self.prefix_tokens = self._ask(message)
        for output in outputs:
            if output.finish_reason is not None or output.error is not None:
                self._unfinished.discard(output.request_id)
        return outputs

    def cancel(self, request_id: int) -> None:
        if request_id in self._unfinished:
            self._unfinished.discard(request_id)
            self._cancels.append(request_id)

    @property
    def num_unfinished(self) -> int:
        return len(self._unfinished)

    def kill(self) -> None:
        """Kill the child; a running step raises EngineDiedError. Safe to call from any thread."""
        self._child.kill()

    def close(self) -> None:
        self._connection.close()  # the child ends when the connection closes
        try:
            self._child.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _ask(self, message: Any) -> Any:
        try:
            self._connection.send(message)
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            code = self._child.poll()
            raise EngineDiedError(f"the engine's process ended (exit code {code})") from error
        if isinstance(answer, Exception):
            raise answer
        return answer


def load_apart(
    settings: Any, *, folder: Path | None = None, threads: int | None = None, gpu_share: float = 1.0
) -> Engine:
    """As `load_engine`; OpenVINO's text generation runs in a child process, because its steps would block this process."""
    if settings.backend.name != "openvino" or settings.task in SEQ2SEQ:
        return load_engine(settings, folder=folder, threads=threads, gpu_share=gpu_share)
    from hfray.engines.openvino import OpenVINOTokenizer

    if folder is None:
        from hfray.models.source import prepare

        folder = prepare(settings)
    return ProcessEngine(settings, folder, threads, OpenVINOTokenizer(folder))


def _serve(connection: Connection) -> None:
    """The child: load the engine, then run one step per message until the connection closes."""
    settings, folder, threads = connection.recv()
    try:
        engine = load_engine(settings, folder=folder, threads=threads)
    except Exception as error:
        connection.send(ValueError(str(error)) if isinstance(error, ValueError) else RuntimeError(repr(error)))
        return
    connection.send((engine.capacity, engine.context_length, engine.precision, engine.top_logprobs))
    while True:
        adds, cancels = connection.recv()
        outputs = []
        try:
            for request in adds:
                try:
                    engine.add(request)
                except RequestError as error:
                    outputs.append(StepOutput(request.id, error=str(error)))
            for request_id in cancels:
                engine.cancel(request_id)
            outputs += engine.step()
        except Exception as error:
            connection.send(EngineDiedError(f"{type(error).__name__}: {error}"))
            return
        connection.send((outputs, engine.num_running, engine.prefix_tokens))


if __name__ == "__main__":
    with contextlib.suppress(EOFError, BrokenPipeError):
        _serve(Connection(int(sys.argv[1])))
    os._exit(0)  # without waiting for the threads of the model library
