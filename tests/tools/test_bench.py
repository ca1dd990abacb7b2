"""The measurements: what is compared runs on the same prompts, and the table says how it came out."""

from __future__ import annotations

import json
import sys

import pytest

from hfray.config.compose import load_settings
from hfray.errors import SettingsError
from hfray.tools.bench import format_table, run_bench
from hfray.tools.bench_cases import BenchSettings, write_case
from tests.conftest import QUESTIONS


def bench_settings(*overrides):
    return load_settings(list(overrides), BenchSettings)


@pytest.mark.parametrize("suite", ["own", "peers", "savings"])
def test_every_suite_composes(suite, questions):
    assert bench_settings(f"suite={suite}", f"input.path={questions}").bench.contestants


def test_a_peer_whose_environment_is_not_given_is_left_out(questions):
    settings = bench_settings("suite=peers", f"input.path={questions}", "bench.paths.scripts=/s", "bench.paths.vllm=/v")
    assert list(settings.bench.usable_peers()) == ["vllm"]


@pytest.mark.parametrize("case", ["questions", "prefix", "duplicates", "long", "lengths"])
def test_cases(case, questions, tmp_path):
    count = write_case(bench_settings(f"input.path={questions}", f"bench.case={case}"), tmp_path / "records.jsonl")
    written = [json.loads(line)["question"] for line in (tmp_path / "records.jsonl").open()]
    assert len(written) == count == len(QUESTIONS)
    assert (len(set(written)) < count) == (case == "duplicates")


def test_three_of_ten_are_duplicates(tmp_path):
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps({"question": f"number {i}"}) + "\n" for i in range(200)))
    write_case(bench_settings(f"input.path={questions}", "bench.case=duplicates"), tmp_path / "records.jsonl")
    assert len(set((tmp_path / "records.jsonl").read_text().splitlines())) == 140


def test_an_unknown_case_is_refused(questions, tmp_path):
    with pytest.raises(SettingsError, match=r"bench.case=nonsense"):
        write_case(bench_settings(f"input.path={questions}", "bench.case=nonsense"), tmp_path / "records.jsonl")


def test_a_run_beside_a_peer(tiny_gpt2, questions, tmp_path):
    peer = tmp_path / "peer.py"
    peer.write_text("import sys; open(sys.argv[1]); print(f'RESULT peer n={sys.argv[2]} out_tokens=50 t=2.0')")
    settings = bench_settings(
        f"input.path={questions}",
        f"output.path={tmp_path / 'bench'}",
        "conf=gpt2_cpu",
        f"model.source={tiny_gpt2}",
        "bench.rounds=2",
        "bench.contestants=[engine]",
        f"bench.peers.peer=['{sys.executable}', '{peer}', '{{prompts}}', '{{n}}']",
    )
    result = run_bench(settings, say=lambda line: None)
    assert result["medians"]["peer"]["tokens_per_second"] == 25
    assert result["medians"]["engine"]["ratio"] == 1
    assert result["medians"]["engine"]["tokens"] > 0
    assert len(result["runs"]["engine"]) == 2
    assert "| peer | 25.0 |" in format_table(result)
    assert json.loads((tmp_path / "bench/bench-questions.json").read_text())["versions"]["transformers"]


def test_a_variant_is_the_job_with_other_settings(tiny_gpt2, questions, tmp_path):
    settings = bench_settings(
        f"input.path={questions}",
        f"output.path={tmp_path / 'bench'}",
        "conf=gpt2_cpu",
        f"model.source={tiny_gpt2}",
        "bench.rounds=1",
        "bench.contestants=[]",
        "bench.variants.short={generation: {max_new_tokens: 2}}",
    )
    assert run_bench(settings, say=lambda line: None)["medians"]["short"]["tokens"] == 2 * len(QUESTIONS)
