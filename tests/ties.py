"""Comparison of greedy tokens from two computations that may round differently.

A different CPU, batch shape or library adds in another order. Where the two likeliest tokens have nearly the same
logit, that decides which one is picked, and the completions have nothing in common afterwards.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import torch

TOLERANCE = 0.02  # of a logit; the test models' logits are around 10


def assert_same_until_tie(
    model_folder: Path,
    prompt_ids: Sequence[int],
    first: Sequence[int],
    second: Sequence[int],
    tolerance: float = TOLERANCE,
) -> None:
    """Check that two greedy completions are equal, or equal up to a near tie of the model's logits.

    Args:
        prompt_ids, first, second: token ids of the prompt and of the two completions, without the end-of-text token.
        tolerance: how far below the likeliest token's logit both picks may be, by transformers in fp32.
    """
    first, second = list(first), list(second)
    if first == second:
        return
    model = _model(model_folder)
    end = model.config.eos_token_id
    at = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
    picks = [tokens[at] if at < len(tokens) else end for tokens in (first, second)]
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt_ids, *first[:at]]])).logits[0, -1].float()
    margin = float(logits.max() - logits[picks].min())
    assert margin <= tolerance, (
        f"the completions differ at token {at} ({picks[0]} and {picks[1]}), and this is no near tie: "
        f"the logits are {margin:.4f} apart, more than the tolerance of {tolerance}"
    )


@functools.lru_cache(maxsize=4)
def _model(folder: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
