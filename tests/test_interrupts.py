"""The signals that stop a command."""

from __future__ import annotations

import os
import signal

import pytest

from hfray import interrupts


@pytest.fixture(autouse=True)
def installed():
    before = {number: signal.getsignal(number) for number in interrupts.SIGNALS}
    interrupts.install()
    yield
    interrupts.install()
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    """Signal this thread: after `os.kill`, another thread may receive the signal, and the handler then runs later."""
    signal.raise_signal(number)


@pytest.mark.parametrize("number", interrupts.SIGNALS)
def test_the_first_signal_interrupts(number):
    with pytest.raises(KeyboardInterrupt):
        send(number)


def test_repeated_signals_do_not_interrupt_the_writing(capfd):
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)
    for number in interrupts.SIGNALS:
        send(number)
    assert "stopping" in capfd.readouterr().err


def test_a_late_signal_interrupts_again_also_what_is_deferred(monkeypatch):
    monkeypatch.setattr(interrupts, "FORCE_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)
    with interrupts.deferred(), pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)


def test_a_deferred_signal_interrupts_at_the_end_of_the_block():
    finished = False
    with pytest.raises(KeyboardInterrupt), interrupts.deferred():  # noqa: PT012
        with interrupts.deferred():
            send(signal.SIGTERM)
        finished = True
    assert finished
    with interrupts.deferred():
        pass


def test_a_signal_that_the_parent_ignores_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    interrupts.install()
    send(signal.SIGHUP)


def test_output_after_the_terminal_was_closed_is_discarded():
    """Writing to a closed terminal fails and would end the command before it has written its answers."""
    controller, terminal = os.openpty()
    interrupts._state.terminals = (terminal,)
    os.close(controller)
    with pytest.raises(OSError, match="Input/output"):
        os.write(terminal, b"x")
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGHUP)
    os.write(terminal, b"x")
    os.close(terminal)


def test_signals_during_pythons_own_cleanup_do_not_replace_the_exit_code():
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGHUP)
    interrupts.end()
    assert all(signal.getsignal(number) is signal.SIG_IGN for number in interrupts.SIGNALS)


def test_a_command_that_nobody_interrupted_can_be_stopped_to_its_end():
    interrupts.end()
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)
