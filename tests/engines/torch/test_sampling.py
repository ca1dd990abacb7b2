"""From logits to tokens: each row of a batch has its own settings and its own random numbers."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hfray.engines.base import Request
from hfray.engines.torch import sampling
from hfray.engines.torch.penalties import penalize
from hfray.engines.torch.row import Row
from hfray.engines.torch.sampling import Sampler
from hfray.params import GenerationParams

END = 0
LOGITS = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0])


def make_row(tokens=(), seed=0, prompt=(4,), **params):
    values = GenerationParams(**params)
    return Row(Request(id=1, prompt_ids=list(prompt), max_new_tokens=9, params=values, seed=seed), list(tokens))


def pick(*rows, logits=LOGITS):
    return Sampler({END}).pick(torch.stack([logits] * len(rows)), list(rows)).tokens


@pytest.mark.parametrize(
    ("row", "token"),
    [
        (make_row(), 0),
        (make_row(min_new_tokens=1), 1),
        (make_row(min_new_tokens=1, tokens=[1]), 0),
        (make_row(presence_penalty=1.5, tokens=[0]), 1),
        (make_row(presence_penalty=0.5, tokens=[0, 0, 0]), 0),
        (make_row(frequency_penalty=0.5, tokens=[0, 0, 0]), 1),
        (make_row(repetition_penalty=2, tokens=[0]), 1),
        (make_row(repetition_penalty=2, prompt=[0]), 1),
        (make_row(no_repeat_ngram_size=2, prompt=[3, 0, 3]), 1),
        (make_row(temperature=0, do_sample=True), 0),
    ],
)
def test_settings_change_the_greedy_token(row, token):
    assert pick(row) == [token]


def test_each_row_has_its_own_settings_and_the_logits_stay_as_they_were():
    logits = LOGITS.clone()
    assert pick(make_row(), make_row(min_new_tokens=2), make_row(tokens=[0], presence_penalty=1.5), logits=logits) == [
        0,
        1,
        1,
    ]
    assert torch.equal(logits, LOGITS)


@pytest.mark.parametrize(
    ("values", "allowed"),
    [({"top_k": 2}, {0, 1}), ({"top_p": 0.8}, {0, 1}), ({"min_p": 0.3}, {0, 1}), ({"top_k": 1}, {0})],
)
def test_sampling_draws_only_what_the_settings_allow(values, allowed):
    drawn = {pick(make_row(temperature=1.0, seed=seed, **values))[0] for seed in range(60)}
    assert drawn == allowed


def draw(row, *others, logits=LOGITS, count=8):
    """The row's next tokens, picked beside other rows."""
    for _ in range(count):
        row.tokens.append(pick(*others, row, logits=logits)[-1])
    return row.tokens


FLAT = torch.linspace(0, 1, 3000)  # needs more tokens than `NUCLEUS` for a high top_p


@pytest.mark.parametrize(
    "values",
    [{}, {"top_k": 20}, {"top_p": 0.9}, {"top_p": 0.9, "top_k": 100, "min_p": 0.5}, {"repetition_penalty": 1.3}],
)
def test_a_rows_draws_depend_on_its_seed_and_not_on_the_batch(values):
    params = {"temperature": 1.5, **values}
    alone = draw(make_row(seed=7, **params), logits=FLAT)
    others = [make_row(temperature=1.0, seed=8, top_k=500), make_row(), make_row(temperature=0.5, top_p=0.3, seed=9)]
    assert draw(make_row(seed=7, **params), *others, logits=FLAT) == alone
    assert draw(make_row(seed=8, **params), logits=FLAT) != alone
    resumed = make_row(seed=7, tokens=alone[:3], **params)
    assert draw(resumed, *others, logits=FLAT, count=5) == alone
    assert len(set(alone)) > 1


def test_rows_are_drawn_in_chunks_that_change_nothing(monkeypatch):
    rows = [make_row(temperature=1.0, seed=i, top_p=0.9, logprobs=2) for i in range(10)]
    whole = Sampler({END}).pick(FLAT.expand(10, -1), rows)
    monkeypatch.setattr(sampling, "CHUNK_VALUES", 3 * len(FLAT))
    parts = Sampler({END}).pick(FLAT.expand(10, -1), rows)
    assert parts.tokens == whole.tokens
    assert parts.logprobs == whole.logprobs


def test_draws_follow_the_probabilities():
    logits, count = torch.tensor([0.0, 1.0, -20.0]).repeat(200), 4000  # three blocks of the vocabulary
    rows = [make_row(temperature=1.0, seed=seed) for seed in range(count)]
    drawn = torch.tensor(Sampler({END}).pick(logits.expand(count, -1), rows).tokens)
    assert not (drawn % 3 == 2).any()
    assert float((drawn % 3 == 1).float().mean()) == pytest.approx(0.731, abs=0.03)
    assert len(drawn.unique()) > 380  # of 400 allowed tokens


def warped(row, logits):
    """The probabilities of transformers' processors."""
    params, chain = row.request.params, LogitsProcessorList()
    if params.repetition_penalty:
        chain.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.no_repeat_ngram_size:
        chain.append(NoRepeatNGramLogitsProcessor(params.no_repeat_ngram_size))
    chain.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        chain.append(TopKLogitsWarper(params.top_k))
    if params.top_p is not None:
        chain.append(TopPLogitsWarper(params.top_p))
    if params.min_p is not None:
        chain.append(MinPLogitsWarper(params.min_p))
    return chain(torch.tensor([row.ids]), logits[None].clone())[0].softmax(dim=-1)


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 0.7},
        {"temperature": 0.7, "top_k": 5},
        {"temperature": 2.0, "top_k": 4000},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.0, "top_p": 0.999},  # more than NUCLEUS tokens
        {"temperature": 1.0, "top_p": 0.0},
        {"temperature": 1.0, "top_p": 1.0},
        {"temperature": 1.3, "top_k": 50, "top_p": 0.5, "min_p": 0.1},
        {"temperature": 1.3, "min_p": 0.9},
        {"temperature": 1.0, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "top_k": 9},
    ],
)
def test_the_allowed_tokens_are_those_of_transformers(values):
    """In a batch with rows of other settings."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2000, generator=generator)
    row = make_row(prompt=[3, 7, 3, 8], tokens=[3], **values)
    other = make_row(temperature=0.5, top_k=30, seed=3)
    scores = torch.stack([logits, logits])
    penalize(scores, [row, other], [END])
    nucleus = sampling.NUCLEUS
    while sampling._filter(scores, [row, other], nucleus, 2000)[0]:
        scores, nucleus = torch.stack([logits, logits]), 2000
    expected = warped(row, logits)
    assert torch.equal(scores[0] > float("-inf"), expected > 0)
    assert torch.allclose(scores[0].softmax(dim=-1), expected, atol=1e-6)


def test_equal_scores_at_the_limit_are_all_allowed():
    """As in transformers; which of them a sort puts first would depend on the device and on the batch."""
    logits = torch.tensor([1.0, 1.0, 1.0, 0.0])
    for values in ({"top_k": 2}, {"top_p": 0.3}):
        drawn = {pick(make_row(temperature=1.0, seed=seed, **values), logits=logits)[0] for seed in range(60)}
        assert drawn == {0, 1, 2}


@pytest.mark.parametrize("count", [0, 1, 3])
def test_log_probabilities_are_those_of_the_unchanged_logits(count):
    row = make_row(logprobs=count, temperature=0.5, repetition_penalty=2.0)
    picked = Sampler({END}).pick(torch.stack([LOGITS] * 3), [None, row, make_row(logprobs=5)])
    own, likeliest = picked.logprobs[1]
    values = LOGITS.log_softmax(dim=-1).tolist()
    assert own == pytest.approx(values[picked.tokens[1]])
    assert [token for token, _ in likeliest] == list(range(count))
    assert [value for _, value in likeliest] == pytest.approx(values[:count])
    assert len(picked.logprobs[2][1]) == 5


def test_a_row_that_has_ended_changes_nothing_for_the_others():
    row = make_row(temperature=1.0, seed=3)
    alone = pick(row)[0]
    assert Sampler({END}).pick(torch.stack([LOGITS] * 3), [None, row, None]).tokens[1] == alone
