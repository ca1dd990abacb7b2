"""Requests that an engine has not started, and the estimate of the length of their completions."""

from __future__ import annotations

import pytest

from hfray.engines.base import Request
from hfray.engines.waiting import ExpectedLength, WaitingRequests
from hfray.params import GenerationParams


def make(number, prompt_tokens=1, max_new_tokens=90):
    return Request(id=number, prompt_ids=[1] * prompt_tokens, max_new_tokens=max_new_tokens, params=GenerationParams())


def test_requests_start_in_the_order_of_arrival_and_cancelled_ones_never():
    waiting = WaitingRequests()
    for number in range(5):
        waiting.add(make(number))
    waiting.cancel(1)
    waiting.cancel(77)
    assert len(waiting) == 4
    assert [request.id for request in waiting.take(2, ending=False)] == [0, 2]
    assert waiting.take(0, ending=False) == []
    assert [request.id for request in waiting.take(9, ending=False)] == [3, 4]
    assert len(waiting) == 0


def test_near_the_end_the_longest_start_first():
    waiting = WaitingRequests()
    for number, length in enumerate([5, 50, 20]):
        waiting.add(make(number, max_new_tokens=length))
    assert [request.id for request in waiting.take(3, ending=True)] == [1, 2, 0]


def test_expected_lengths_follow_the_prompts():
    expected, params = ExpectedLength(), GenerationParams()
    long, short = (Request(id=i, prompt_ids=[1] * n, max_new_tokens=90, params=params) for i, n in ((0, 60), (1, 4)))
    assert expected.of(long) == expected.of(short) == 90  # nothing is known yet
    for prompt_tokens in range(40):
        expected.observe(prompt_tokens, 3 * prompt_tokens + 2)
    assert expected.of(short) == pytest.approx(14)
    assert expected.of(long) == 90  # never more than is allowed
