"""The comparison of greedy tokens accepts a near tie and nothing else."""

from __future__ import annotations

import pytest
import torch

from tests.ties import _model, _tokenizer, assert_same_text_until_tie, assert_same_until_tie


@pytest.fixture
def picks(tiny_gpt2):
    """Token ids of a prompt's next token, the likeliest first, and their logits."""
    with torch.inference_mode():
        logits = _model(tiny_gpt2)(torch.tensor([[5, 6, 7]])).logits[0, -1]
    return logits.sort(descending=True)


def test_equal_tokens_pass(tiny_gpt2):
    assert_same_until_tie(tiny_gpt2, [5, 6, 7], [8, 9], [8, 9])


def test_a_difference_passes_only_within_the_tolerance(tiny_gpt2, picks):
    first, second = [int(picks.indices[0]), 9], [int(picks.indices[1]), 4]
    margin = float(picks.values[0] - picks.values[1])
    assert_same_until_tie(tiny_gpt2, [5, 6, 7], first, second, tolerance=margin + 0.01)
    with pytest.raises(AssertionError, match=f"differ at token 0 .*{margin:.4f} apart"):
        assert_same_until_tie(tiny_gpt2, [5, 6, 7], first, second, tolerance=margin - 0.01)


def test_a_completion_that_is_cut_short_is_no_tie(tiny_gpt2, picks):
    with pytest.raises(AssertionError, match="differ at token 0"):
        assert_same_until_tie(tiny_gpt2, [5, 6, 7], [int(picks.indices[0])], [], tolerance=0.0)


def test_texts_pass_if_equal_or_if_they_differ_at_a_near_tie(tiny_gpt2, picks):
    texts = [_tokenizer(tiny_gpt2).decode([int(token)]) for token in picks.indices[:2]]
    margin = float(picks.values[0] - picks.values[1])
    assert_same_text_until_tie(tiny_gpt2, [5, 6, 7], "same", "same")
    assert_same_text_until_tie(tiny_gpt2, [5, 6, 7], *texts, tolerance=margin + 0.01)
    with pytest.raises(AssertionError, match=f"differ at token 0, .*{margin:.4f} apart"):
        assert_same_text_until_tie(tiny_gpt2, [5, 6, 7], *texts, tolerance=margin - 0.01)


def test_texts_are_followed_to_the_token_where_they_differ(tiny_gpt2):
    model, tokenizer = _model(tiny_gpt2), _tokenizer(tiny_gpt2)
    ids = tokenizer("Hello", return_tensors="pt")
    tokens = model.generate(**ids, max_new_tokens=6, do_sample=False)[0]
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    for other in (text[:-1] + "\N{SNOWMAN}", text[:-1]):
        with pytest.raises(AssertionError, match=r"differ at token [1-6], .* apart"):
            assert_same_text_until_tie(tiny_gpt2, "Hello", text, other, tolerance=0.0)
