"""From logits to tokens: each row of a batch has its own settings and its own random numbers."""

from __future__ import annotations

import pytest
import torch

from hfray.engines.base import Request
from hfray.engines.torch.sampling import Row, Sampler
from hfray.params import GenerationParams

END = 0
LOGITS = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0])


def make_row(tokens=(), seed=0, prompt=(4,), **params):
    values = GenerationParams(**params)
    return Row(Request(id=1, prompt_ids=list(prompt), max_new_tokens=9, params=values, seed=seed), list(tokens))


def pick(*rows, logits=LOGITS):
    return Sampler({END}).pick(torch.stack([logits] * len(rows)), list(rows))


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


def test_a_rows_draws_depend_on_its_seed_and_not_on_the_batch():
    alone = make_row(temperature=2.0, seed=7)
    tokens = [pick(alone)[0] for _ in range(8)]
    same, other = make_row(temperature=2.0, seed=7), make_row(temperature=2.0, seed=8)
    together = [pick(other, make_row(), same) for _ in range(8)]
    assert [row[2] for row in together] == tokens
    assert [row[0] for row in together] != tokens


def test_draws_follow_the_probabilities():
    row, logits = make_row(temperature=1.0, seed=3), torch.tensor([0.0, 0.0, -20.0])
    drawn = [pick(row, logits=logits)[0] for _ in range(400)]
    assert 140 < drawn.count(0) < 260
    assert 2 not in drawn


@pytest.mark.parametrize("count", [0, 1, 3])
def test_log_probabilities_are_those_of_the_unchanged_logits(count):
    row = make_row(logprobs=count, temperature=0.5, repetition_penalty=2.0)
    own, likeliest = Sampler({END}).logprobs(LOGITS, row, 2)
    values = LOGITS.log_softmax(dim=-1).tolist()
    assert own == pytest.approx(values[2])
    assert [token for token, _ in likeliest] == list(range(count))
    assert [value for _, value in likeliest] == pytest.approx(values[:count])
