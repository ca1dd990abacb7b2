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
    peer.write_text("import sys; open(sys.argv[1]); print(f'RESULT peer n={sys.argv[2]} out_tokens=50 t=2.0')")
    settings = bench_settings(
        *common,
        "bench.rounds=2",
        "bench.contestants=[genai,engine]",
        f"bench.peers.peer=['{sys.executable}', '{peer}', '{{prompts}}', '{{n}}']",
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
    assert "| peer | 25.0 |" in format_table(result)
    assert json.loads((tmp_path / "bench/bench-questions.json").read_text())["versions"]["transformers"]


def test_a_peer_without_a_result_is_an_error(common):
    peer = [sys.executable, "-c", "print(1)"]
    settings = bench_settings(*common, "bench.contestants=[]", f"bench.peers.silent={json.dumps(peer)}")
    with pytest.raises(RuntimeError, match="printed no RESULT line: 1"):
        run_bench(settings, say=lambda line: None)


def test_nothing_to_run_is_refused(common):
    with pytest.raises(SettingsError, match=r"bench.contestants=\['genai'\]: nothing is left to run"):
        run_bench(bench_settings(*common, "bench.contestants=[genai]"), say=lambda line: None)


def test_the_rate_of_a_run():
    assert Run(tokens=50, seconds=2.0).rate == 25


@pytest.mark.ray
def test_a_variant_is_the_job_with_changed_settings(common, shared_ray, monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, shared_ray[name])
    settings = bench_settings(
        *common,
        "bench.rounds=1",
        "bench.contestants=[]",
        "bench.variants.short={generation: {max_new_tokens: 2}}",
    )
    assert run_bench(settings, say=lambda line: None)["medians"]["short"]["tokens"] == 2 * len(QUESTIONS)
