"""The cases of the bench: numbers of records, repeated prompts, refused settings."""

from __future__ import annotations

import json

import pytest

from hfray.config.compose import load_settings
from hfray.errors import SettingsError
from hfray.tools.bench_cases import LONG_WORDS, PREFIX_WORDS, BenchSettings, prompts_of, write_case
from tests.conftest import QUESTIONS


def bench_settings(*overrides: str) -> BenchSettings:
    return load_settings(list(overrides), BenchSettings)


@pytest.mark.parametrize("suite", ["own", "ladder", "peers", "savings", "typed"])
def test_every_suite_composes(suite, questions):
    assert bench_settings(f"suite={suite}", f"input.path={questions}").bench.contestants


def test_a_peer_without_its_paths_is_left_out(questions):
    settings = bench_settings("suite=peers", f"input.path={questions}", "bench.paths.scripts=/s", "bench.paths.vllm=/v")
    assert settings.model.precision == "exact"
    assert settings.bench.peers.keys() == settings.bench.precisions.keys()
    assert list(settings.bench.usable_peers()) == ["vllm"]


@pytest.mark.parametrize("case", ["questions", "prefix", "duplicates", "long", "lengths"])
def test_every_case_has_a_record_per_question(case, questions, tmp_path):
    count = write_case(bench_settings(f"input.path={questions}", f"bench.case={case}"), tmp_path / "records.jsonl")
    written = [json.loads(line)["question"] for line in (tmp_path / "records.jsonl").open()]
    assert len(written) == count == len(QUESTIONS)
    assert (len(set(written)) < count) == (case == "duplicates")


def test_three_of_ten_are_duplicates():
    assert len(set(prompts_of("duplicates", [f"number {i}" for i in range(200)]))) == 140


def test_the_lengths_of_the_cases():
    questions = [f"question {i} of ten words is here for the bench" for i in range(100)]
    assert all(len(text.split()) > PREFIX_WORDS for text in prompts_of("prefix", questions))
    assert all(len(text.split()) > LONG_WORDS for text in prompts_of("long", questions))
    lengths = [len(text.split()) for text in prompts_of("lengths", questions)]
    assert min(lengths) < 10
    assert max(lengths) > 150


@pytest.mark.parametrize("override", ["bench.case=nonsense", "bench.contestants=[nobody]", "bench.rounds=0"])
def test_an_unusable_setting_is_refused_by_name(override, questions):
    with pytest.raises(SettingsError, match=override.split("=")[0]):
        bench_settings(f"input.path={questions}", override)


def test_an_input_without_questions_is_refused(tmp_path):
    path = tmp_path / "other.jsonl"
    path.write_text('{"text": "no question here"}\n')
    with pytest.raises(SettingsError, match="no row has a text in the column `question`"):
        write_case(bench_settings(f"input.path={path}"), tmp_path / "records.jsonl")
