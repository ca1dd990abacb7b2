"""The bench: contestants run on the same prompts, and the table shows the medians."""

from __future__ import annotations

import json
import sys

import pytest

from hfray.errors import SettingsError
from hfray.tools.bench import format_table, run_bench
from hfray.tools.bench_contestants import Run
from tests.conftest import QUESTIONS
from tests.tools.test_bench_cases import bench_settings


@pytest.fixture
def common(questions, tmp_path) -> list[str]:
    return [f"input.path={questions}", f"output.path={tmp_path / 'bench'}", "conf=fake"]


def test_an_engine_runs_beside_a_peer(common, tmp_path):
    peer = tmp_path / "peer.py"
    result = "RESULT peer n={sys.argv[2]} out_tokens=50 t=2.0 tok/s=25 precision={sys.argv[3]}"
    peer.write_text(f"import sys; open(sys.argv[1]); print(f'{result}')")
    settings = bench_settings(
        *common,
        "bench.rounds=2",
        "bench.contestants=[genai,engine]",
        f"bench.peers.peer=['{sys.executable}', '{peer}', '{{prompts}}', '{{n}}', '{{dtype}}']",
        "bench.peers.absent=['{nowhere}/python']",
        "bench.paths.nowhere=null",
    )
    said = []
    result = run_bench(settings, say=said.append)
    assert said[0] == "left out: genai, which needs backend=openvino (backend=fake)"
    assert said[1].startswith("left out: absent, because bench.paths lacks a path")
    assert list(result["medians"]) == ["engine", "peer"]
    assert result["medians"]["peer"]["tokens_per_second"] == 25
    assert result["medians"]["engine"]["ratio"] == 1
    assert result["medians"]["engine"]["tokens"] > 0
    assert len(result["runs"]["engine"]) == 2
    assert "| peer | fp32 | 25.0 |" in format_table(result)
    assert json.loads((tmp_path / "bench/bench-questions.json").read_text())["versions"]["transformers"]


def test_a_peer_without_a_result_is_an_error(common):
    peer = [sys.executable, "-c", "print(1)"]
    settings = bench_settings(*common, "bench.contestants=[]", f"bench.peers.silent={json.dumps(peer)}")
    with pytest.raises(RuntimeError, match="printed no RESULT line: 1"):
        run_bench(settings, say=lambda line: None)


def peer_in(**more: str) -> list[str]:
    """Overrides for a peer that computes in another precision than the fake engine's fp32, and its neighbours."""
    told = "".join(f" {name}={value}" for name, value in more.items())
    peer = [sys.executable, "-c", f"print('RESULT peer n=8 out_tokens=50 t=2.0{told}')"]
    return ["bench.contestants=[engine]", f"bench.peers.other={json.dumps(peer)}"]


@pytest.mark.parametrize("overrides", [peer_in(precision="bfloat16"), [*peer_in(), "bench.precisions.other=bf16"]])
def test_contestants_in_different_precisions_are_refused(common, overrides):
    with pytest.raises(RuntimeError, match=r"same precision: engine in fp32, other in bf16.*model\.precision"):
        run_bench(bench_settings(*common, *overrides), say=lambda line: None)


def test_a_peer_that_does_not_tell_its_precision_is_refused(common):
    with pytest.raises(RuntimeError, match=r"bench\.peers\.other: .*bench\.precisions\.other=NAME"):
        run_bench(bench_settings(*common, *peer_in()), say=lambda line: None)


def test_a_declared_precision_may_be_that_of_the_first_contestant(common):
    settings = bench_settings(*common, *peer_in(), "bench.precisions.other={precision}", "model.precision=bf16")
    runs = run_bench(settings, say=lambda line: None)["runs"]
    assert {name: run["precision"] for name, (run, *_) in runs.items()} == {"engine": "bf16", "other": "bf16"}


def test_nothing_to_run_is_refused(common):
    with pytest.raises(SettingsError, match=r"bench.contestants=\['genai'\]: nothing is left to run"):
        run_bench(bench_settings(*common, "bench.contestants=[genai]"), say=lambda line: None)


def test_the_rate_of_a_run():
    assert Run(tokens=50, seconds=2.0).rate == 25


@pytest.mark.ray
def test_every_rung_of_the_ladder_answers_all_prompts(common, shared_ray, monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, shared_ray[name])
    settings = bench_settings(*common, "suite=ladder", "bench.rounds=1", "generation.max_new_tokens=2")
    result = run_bench(settings, say=lambda line: None)
    assert {name: m["tokens"] for name, m in result["medians"].items()} == dict.fromkeys(
        ["engine", "actor", "feed", "job"], 2 * len(QUESTIONS)
    )


@pytest.mark.ray
def test_a_variant_is_the_job_with_changed_settings(common, shared_ray, monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, shared_ray[name])
    settings = bench_settings(
        *common,
        "bench.rounds=1",
        "bench.contestants=[]",
        "bench.variants.short={generation: {max_new_tokens: 2}}",
        "bench.variants.half={model: {precision: bf16}}",
    )
    result = run_bench(settings, say=lambda line: None)
    assert result["medians"]["short"]["tokens"] == 2 * len(QUESTIONS)
    assert [result["runs"][name][0]["precision"] for name in ("short", "half")] == ["fp32", "bf16"]


def test_a_form_is_measured_against_the_same_tokens_without_it(common, tmp_path):
    schema = "response.schema={type: object, properties: {n: {type: integer}}, required: [n]}"
    result = run_bench(bench_settings(*common, "suite=typed", "bench.rounds=1", schema), say=lambda line: None)
    assert list(result["medians"]) == ["plain", "typed"]
    assert result["medians"]["plain"]["tokens"] == result["medians"]["typed"]["tokens"] > 0
    assert (tmp_path / "bench/bench-schema.json").exists()
