"""Admission control and tickets: every request gives back its whole share."""

from __future__ import annotations

from typing import Any

import pytest

from hfray.serve.admission import Admission, Ticket
from hfray.serve.errors import ApiError


class Session:
    """Counts how often it is closed."""

    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def test_a_full_server_refuses():
    admission = Admission(2)
    tickets = [Ticket(admission, lambda _: None) for _ in range(2)]
    with pytest.raises(ApiError) as caught:
        Ticket(admission, lambda _: None)
    assert caught.value.status_code == 503
    assert admission.taken == 2
    tickets[0].close()
    Ticket(admission, lambda _: None).close()
    assert admission.taken == 1


def test_a_widened_ticket_gives_back_its_whole_share_once():
    admission = Admission(5)
    ticket = Ticket(admission, lambda _: None)
    ticket.widen(4)
    assert admission.taken == 4
    ticket.close()
    ticket.close()
    assert admission.taken == 0


def test_a_ticket_that_cannot_be_widened_keeps_its_share():
    admission = Admission(3)
    other, ticket = Ticket(admission, lambda _: None), Ticket(admission, lambda _: None)
    with pytest.raises(ApiError) as caught:
        ticket.widen(3)
    assert caught.value.status_code == 503  # there may be room later
    with pytest.raises(ApiError) as caught:
        ticket.widen(4)
    assert caught.value.status_code == 400  # there will never be room
    ticket.close()
    other.close()
    assert admission.taken == 0


def test_the_session_is_closed_and_counted_once():
    admission, counted = Admission(1), []
    ticket = Ticket(admission, counted.append)
    session: Any = Session()
    assert ticket.hold(session) is session
    ticket.close()
    ticket.close()
    assert session.closed == 1
    assert counted == [session]
