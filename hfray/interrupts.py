"""Signals that stop a command: SIGINT (Ctrl-C), SIGTERM (`ray job stop`) and SIGHUP (the terminal was closed).

The first signal raises KeyboardInterrupt in the main thread. Further signals are ignored for FORCE_SECONDS, so that a
second Ctrl-C does not stop the command while it writes the answers that it has. Afterwards one more signal raises
KeyboardInterrupt again, wherever the command is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FORCE_SECONDS = 10.0
REPEATED = f"stopping; one more signal after {FORCE_SECONDS:g} s stops without writing the answers\n"


@dataclass(slots=True)
class _State:
    """What happened since `install`.

    Args:
        last: when a signal last had an effect.
        deferring: how many `deferred` blocks the main thread is in.
        pending: whether a signal waits for the end of these blocks.
        hung_up: whether the terminal was closed.
        terminals: those of stdout and stderr that are terminals.
    """

    last: float | None = None
    deferring: int = 0
    pending: bool = False
    hung_up: bool = False
    terminals: tuple[int, ...] = ()


_state = _State()


def install() -> None:
    """Handle the signals from now on; a signal that the parent process ignores (`nohup`) stays ignored."""
    global _state
    _state = _State(terminals=tuple(fd for fd in (1, 2) if os.isatty(fd)))
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _on_signal)


def end() -> None:
    """Ignore further signals if there was one: the exit code is known, and only Python's own cleanup is left.

    Python restores the default handlers during its cleanup, and a signal would then replace the exit code.
    """
    if _state.last is not None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Finish the block before a first signal raises KeyboardInterrupt; has no effect in other threads than the main."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.deferring += 1
    try:
        yield
    finally:
        _state.deferring -= 1
        if _state.pending and not _state.deferring:
            _raise()


def _on_signal(number: int, _frame: FrameType | None) -> None:
    _state.hung_up |= number == signal.SIGHUP
    now, first = time.monotonic(), _state.last is None
    if _state.last is not None and now - _state.last < FORCE_SECONDS:
        if not _state.hung_up:
            with contextlib.suppress(OSError):
                os.write(2, REPEATED.encode())  # `print` is not allowed to interrupt another `print`
        return
    _state.last = now
    if first and _state.deferring:
        _state.pending = True
    else:
        _raise()


def _raise() -> None:
    _state.pending = False
    if _state.hung_up:
        _leave_terminal()
    raise KeyboardInterrupt


def _leave_terminal() -> None:
    """Discard further output: writing to a closed terminal fails, and would end the command before it has finished."""
    null = os.open(os.devnull, os.O_WRONLY)
    for fd in _state.terminals:
        os.dup2(null, fd)
    os.close(null)
