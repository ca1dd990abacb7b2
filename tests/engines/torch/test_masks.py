"""Masks over logits, for rows whose answers have a form."""

from __future__ import annotations

import pytest
import torch

from hfray.engines.base import Request
from hfray.engines.fakeanswers import byte_tokenizer
from hfray.engines.guides import Guides
from hfray.engines.torch.masks import TokenMasks
from hfray.params import GenerationParams
from hfray.response import ResponseFormat


def request(number: int, form: ResponseFormat | None) -> Request:
    return Request(id=number, prompt_ids=[1], max_new_tokens=9, params=GenerationParams(response=form))


@pytest.fixture
def masks():
    return TokenMasks(Guides(byte_tokenizer))


@pytest.mark.parametrize("width", [262, 300, 100])  # a model's logits may be wider or narrower than its vocabulary
def test_only_allowed_tokens_keep_their_logits(masks, width):
    rows = [
        request(1, ResponseFormat.of_choices(["ab", "b"])),
        request(2, None),
        request(3, ResponseFormat("regex", "a")),
    ]
    logits = torch.randn(3, width)
    before = logits.clone()
    masked = masks.apply(logits, rows)
    assert torch.equal(logits, before)
    assert torch.equal(masked[1], logits[1])
    assert masked[0].isfinite().nonzero().flatten().tolist() == [ord("a"), ord("b")]
    assert masked[2].isfinite().nonzero().flatten().tolist() == [ord("a")]
    assert masked[0, ord("a")] == logits[0, ord("a")]


def test_without_forms_the_logits_are_the_same_tensor(masks):
    logits = torch.randn(2, 262)
    assert masks.apply(logits, [request(1, None), request(2, None)]) is logits
