"""GenerationParams: refused values, greedy or sampled, and the room that a prompt leaves."""

from __future__ import annotations

import pytest

from hfray.errors import RequestError
from hfray.params import GenerationParams


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"top_p": 1.5}, r"generation\.top_p=1\.5: must be between 0 and 1"),
        ({"top_p": "x"}, r"generation\.top_p='x': must be a number"),
        ({"temperature": True}, r"generation\.temperature=True: must be a number"),
        ({"max_new_tokens": 2.5}, r"generation\.max_new_tokens=2\.5: must be a whole number"),
        ({"stop_strings": 5}, r"generation\.stop_strings.*non-empty"),
        ({"stop_strings": [""]}, r"generation\.stop_strings.*non-empty"),
        ({"temprature": 1}, r"generation\.temprature=1.*Did you mean generation\.temperature"),
        ({"zzz": 1}, r"generation\.zzz=1.*Known: "),
    ],
)
def test_mistakes_name_key_and_value(values, message):
    with pytest.raises(ValueError, match=message):
        GenerationParams.from_mapping(values)


def test_nulls_count_as_not_given_and_stop_is_an_alias():
    params = GenerationParams.from_mapping({"temperature": None, "stop": "END"})
    assert params == GenerationParams(stop_strings=("END",))
    assert params.with_stop(["x"]).stop_strings == ("END", "x")
    assert params.with_stop(None) is params


def test_values_stay_as_given():
    assert GenerationParams(repetition_penalty=2).to_mapping() == {"repetition_penalty": 2}
    assert GenerationParams(stop_strings=("a",)).to_mapping() == {"stop_strings": ["a"]}
    assert GenerationParams.from_mapping(GenerationParams(seed=3, top_k=5).to_mapping()) == GenerationParams(
        seed=3, top_k=5
    )


@pytest.mark.parametrize(
    ("values", "sampling"),
    [
        ({}, False),
        ({"temperature": 0.5}, True),
        ({"temperature": 0, "do_sample": True}, False),
        ({"do_sample": True}, True),
        ({"temperature": 0.5, "do_sample": False}, False),
    ],
)
def test_greedy_or_sampled(values, sampling):
    assert GenerationParams(**values).sampling is sampling


def test_settings_beyond_greedy_are_named():
    assert GenerationParams(max_new_tokens=3).beyond_greedy is None
    assert GenerationParams(repetition_penalty=1.0).beyond_greedy is None
    assert GenerationParams(temperature=0.5).beyond_greedy == "temperature=0.5"
    assert GenerationParams(logprobs=0).beyond_greedy == "logprobs=0"


def test_row_seeds_differ_by_prompt_and_sample_and_are_repeatable():
    params = GenerationParams(seed=1)
    seeds = {params.row_seed(prompt, sample) for prompt in ("a", "b") for sample in (0, 1)}
    assert len(seeds) == 4
    assert params.row_seed("a") == GenerationParams(seed=1, top_k=3).row_seed("a")
    assert params.row_seed("\ud800") != params.row_seed("a")


def test_room_for_tokens():
    assert GenerationParams(max_new_tokens=5, max_length=3).max_tokens_for(10, None) == 5
    assert GenerationParams(max_length=12).max_tokens_for(10, None) == 2
    assert GenerationParams().max_tokens_for(10, None) == GenerationParams.DEFAULT_MAX_NEW_TOKENS
    assert GenerationParams(max_new_tokens=50).max_tokens_for(10, 16) == 6
    with pytest.raises(RequestError, match=r"16 tokens.*context holds 16"):
        GenerationParams().max_tokens_for(16, 16)
    with pytest.raises(RequestError, match=r"max_length=10"):
        GenerationParams(max_length=10).max_tokens_for(10, None)
