"""Comparison of greedy tokens from two computations that may round differently.

Another CPU, batch shape or library adds numbers in another order. If the two likeliest tokens have nearly the same
logit, rounding decides which token is picked, and the completions differ completely afterwards.
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
        tolerance: how far the logits of both picks may be below the greatest logit, computed by transformers in fp32.
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
        f"the completions differ at token {at} ({picks[0]} and {picks[1]}), and their logits are no near tie: "
        f"they are {margin:.4f} apart, more than the tolerance of {tolerance}"
    )


def log_probabilities(model_folder: Path, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> torch.Tensor:
    """The log-probabilities [tokens, vocabulary] at each generated token, by one forward of transformers in fp32."""
    with torch.inference_mode():
        logits = _model(model_folder)(torch.tensor([[*prompt_ids, *token_ids]])).logits[0].float()
    return logits.log_softmax(dim=-1)[len(prompt_ids) - 1 : -1]


def assert_same_text_until_tie(
    model_folder: Path, prompt: str | Sequence[int], first: str, second: str, tolerance: float = TOLERANCE
) -> None:
    """Check that two texts of greedy completions are equal, or equal up to a near tie of the model's logits.

    Args:
        prompt: the prompt's text or its token ids. The texts may start with the prompt's text.
        tolerance: how far apart the two highest logits may be where the texts differ, by transformers in fp32.
    """
    if first == second:
        return
    model, tokenizer = _model(model_folder), _tokenizer(model_folder)
    if isinstance(prompt, str):
        first, second = first.removeprefix(prompt), second.removeprefix(prompt)
        prompt = tokenizer(prompt)["input_ids"]
    tokens: list[int] = []
    while True:
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, -1].float()
        tokens.append(int(logits.argmax()))
        text = tokenizer.decode(tokens, skip_special_tokens=True).rstrip("\ufffd")  # half a character
        ended = tokens[-1] == model.config.eos_token_id
        if ended or not (first.startswith(text) and second.startswith(text)):
            break
    best, next_best = logits.topk(2).values.tolist()
    assert best - next_best <= tolerance, (
        f"{first!r} and {second!r} differ at token {len(tokens) - 1}, and this is no near tie: "
        f"the logits are {best - next_best:.4f} apart, more than the tolerance of {tolerance}"
    )


def assert_same_texts_until_ties(
    model_folder: Path, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
) -> None:
    """Check with `assert_same_text_until_tie` the texts of several prompts."""
    for prompt, one, other in zip(prompts, first, second, strict=True):
        assert_same_text_until_tie(model_folder, prompt, one, other)


@functools.lru_cache(maxsize=4)
def _tokenizer(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@functools.lru_cache(maxsize=4)
def _model(folder: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
