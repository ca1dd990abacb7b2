"""Prompts and completions."""

from __future__ import annotations

from hfray.completion import Completion


def test_a_completion_without_tokens_keeps_everything_else():
    full = Completion("text", "stop", 3, 2, None, [1, 2], [(-0.1, []), (-0.2, [])])
    light = full.without_tokens()
    assert (light.text, light.finish_reason, light.num_prompt_tokens, light.num_generated_tokens) == (
        "text",
        "stop",
        3,
        2,
    )
    assert (light.token_ids, light.logprobs) == ([], [])
    assert full.token_ids == [1, 2]
