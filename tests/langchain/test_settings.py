"""Generation settings: precedence, neutral values, refused names."""

from __future__ import annotations

import json
import logging

import pytest

from hfray.langchain.settings import NEUTRAL, causal_defaults, generation_params, user_settings


def test_model_kwargs_may_hold_generation_settings():
    assert user_settings({"temperature": 0, "dtype": "auto"}, {"max_length": 9}) == {"temperature": 0, "max_length": 9}
    assert user_settings(None, None) == {}


@pytest.mark.parametrize("causal", [True, False])
def test_neutral_values_of_unsupported_settings_are_accepted(causal):
    empty = {"bad_words_ids": None, "suppress_tokens": [], "stopping_criteria": [], "max_time": None}
    assert generation_params({**NEUTRAL, **empty, "max_new_tokens": 3}, causal).to_mapping() == {"max_new_tokens": 3}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("diversity_penalty", 0.5),
        ("num_beam_groups", 2),
        ("token_healing", True),
        ("epsilon_cutoff", 0.1),
        ("typical_p", 0.9),
        ("bad_words_ids", [[1]]),
        ("suppress_tokens", [1]),
        ("max_time", 1.0),
        ("stopping_criteria", ["stop"]),
    ],
)
def test_unsupported_settings_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name}=.*do not support this setting"):
        generation_params({name: value}, True)


def test_renormalizing_changes_only_beam_search():
    assert generation_params({"renormalize_logits": True}, True) == generation_params({}, True)
    with pytest.raises(ValueError, match="renormalize_logits=True"):
        generation_params({"renormalize_logits": True}, False)


def test_the_names_of_transformers():
    assert generation_params({"stop_sequence": "b", "stop_strings": ["a"]}, True).stop_strings == ("a", "b")
    assert generation_params({"min_length": 5}, False).min_new_tokens == 4
    assert not generation_params({"temperature": 0, "do_sample": True}, True).sampling
    for wrong in ({"num_beams": 2}, {"min_length": 5}, {"skip_special_tokens": False}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            generation_params(wrong, True)


def test_defaults_of_a_folder(tmp_path, caplog):
    assert causal_defaults(tmp_path) == {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7, "top_k": 50}
    own = {"max_length": 90, "top_k": 7, "temperature": 0.1, "suppress_tokens": [3], "typical_p": 1.0}
    (tmp_path / "generation_config.json").write_text(json.dumps(own))
    with caplog.at_level(logging.WARNING):
        defaults = causal_defaults(tmp_path)
    assert defaults == {"max_length": 90, "do_sample": True, "temperature": 0.7, "top_k": 7}
    assert "suppress_tokens are not applied" in caplog.text
