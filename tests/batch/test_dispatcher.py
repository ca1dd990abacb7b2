"""Several pools on one table: different speeds, nodes that never come; every row is answered once."""

from __future__ import annotations

import io
import json

import pytest

from hfray.batch import scheduler
from hfray.batch.job import run_batch
from hfray.errors import ExitCode, JobError, SettingsError
from hfray.runs.status import describe, read_status
from jobs.console import print_summary
from tests.batch.running import check_rows, fake, rows_of, run_pools, table, write
from tests.conftest import QUESTIONS, batch_settings
from tests.processes import Hold

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("shared_ray")]


def test_each_row_once_and_the_fast_does_more(tmp_path):
    hold = Hold(tmp_path, 16)
    with hold.acting(2):
        both = fake("fast", 0.05, hold), fake("slow", 0.4, hold)
        summary = run_pools(table(tmp_path, 1000), tmp_path / "out", *both)
    check_rows(tmp_path / "out", 1000)
    done = summary.engine.pools
    assert summary.exit_code == ExitCode.OK
    assert done["fast"].rows > 2 * done["slow"].rows > 0
    assert done["fast"].rows + done["slow"].rows == 1000
    record = json.loads((tmp_path / "out/_hfray/summary.json").read_text())
    assert record["engine"]["pools"]["slow"]["generated_tokens"] == done["slow"].generated_tokens > 0
    assert {worker["pool"] for worker in record["engine"]["workers"].values()} == {"fast", "slow"}


def test_what_the_engines_really_compute_in_is_told_everywhere(tmp_path, capfd):
    """Two pools are asked for different precisions."""
    hold, out, said = Hold(tmp_path, 16), tmp_path / "out", io.StringIO()
    with hold.acting(2):
        half = fake("half", 0.0, hold, model={"source": "fake", "precision": "bf16"})
        summary = run_pools(table(tmp_path, 200), out, half, fake("full", 0.0, hold))
    words = "bf16 (1 worker) and fp32 (1 worker)"
    assert f"workers compute in {words}: the text of a row depends on the worker" in capfd.readouterr().err
    print_summary(summary, said)
    assert words in said.getvalue()
    assert f"computes in {words}" in describe(read_status(str(out)))
    assert f"<td>{words}</td>" in (out / "_hfray/report.html").read_text()
    run, record = (json.loads((out / "_hfray" / name).read_text()) for name in ("run.json", "summary.json"))
    assert run["precisions"] == ["bf16", "fp32"]
    assert [engine["model.precision"] for engine in run["fingerprint"]["engines"]] == ["auto", "bf16"]
    assert record["engine"]["precisions"] == {"bf16": 1, "fp32": 1}
    assert {(w["pool"], w["precision"]) for w in record["engine"]["workers"].values()} == {
        ("half", "bf16"),
        ("full", "fp32"),
    }


def test_a_pool_whose_nodes_never_come_holds_nothing_up_and_what_each_pool_did_is_shown(tmp_path):
    out = tmp_path / "out"
    summary = run_pools(table(tmp_path, 100), out, fake("left"), fake("right"), fake("gone", resources={"nowhere": 1}))
    check_rows(out, 100)
    done = summary.engine.pools
    assert summary.exit_code == ExitCode.OK
    assert (done["gone"].workers, done["gone"].rows) == (0, 0)
    assert done["left"].rows + done["right"].rows == 100
    said = io.StringIO()
    print_summary(summary, said)
    left = summary.engine.pools["left"]
    words = f"left: 1 worker, {left.rows} rows, {left.prompt_tokens:,} tokens in"
    assert words in said.getvalue()
    assert "gone: no worker started" in said.getvalue()
    assert f"pool {words}" in "\n".join(describe(read_status(str(out))))
    page = (out / "_hfray/report.html").read_text()
    assert f'<td>left</td><td class="number">1</td><td class="number">{left.rows}</td>' in page
    assert "<th>pool</th><th>node</th>" in page


def test_nobody_idles_while_rows_wait(tmp_path):
    """Busy for all of the time but the ends: one block of the slow one's is as long as 16 of the fast one's steps."""
    done = run_pools(table(tmp_path, 3000), tmp_path / "out", fake("fast", 0.05), fake("slow", 0.4)).engine.pools
    check_rows(tmp_path / "out", 3000)
    assert done["slow"].busy_share > 0.9
    assert done["fast"].busy_share > 0.7


def test_what_a_slow_worker_is_left_with_goes_to_an_idle_one(tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler, "COPY_SECONDS", 1.0)
    summary = run_pools(table(tmp_path, 200), tmp_path / "out", fake("fast", 0.1), fake("stuck", 3600))
    check_rows(tmp_path / "out", 200)
    assert summary.engine.pools["stuck"].rows == 0


def test_no_pool_that_comes_up_is_the_end_with_what_each_wants(tmp_path):
    absent = [fake(name, resources={name: 1}, start_timeout=2) for name in ("nowhere", "elsewhere")]
    with pytest.raises(JobError, match=r"start_timeout=2: .*nowhere.*elsewhere"):
        run_pools(table(tmp_path, 10), tmp_path / "out", *absent)


def test_a_pool_that_cannot_start_ends_the_job_with_the_cause(tmp_path, tiny_llama):
    broken = tmp_path / "model"
    broken.mkdir()
    for file in tiny_llama.iterdir():
        (broken / file.name).write_bytes(file.read_bytes()[: 1000 if file.suffix == ".safetensors" else None])
    bad = f"{{backend: transformers, model: {{source: {broken}}}}}"
    with pytest.raises(JobError, match="a worker cannot start: SafetensorError"):
        run_pools(table(tmp_path, 2000), tmp_path / "out", fake("good", 0.4), bad)


def test_a_pool_grows_while_its_workers_are_full(tmp_path):
    hold = Hold(tmp_path, 64)
    with hold.acting(3):
        both = fake("grows", 0.0, hold, size=[1, 2]), fake("other", 0.0, hold)
        summary = run_pools(table(tmp_path, 800), tmp_path / "out", *both)
    check_rows(tmp_path / "out", 800)
    assert summary.engine.pools["grows"].workers == 2
    assert all(worker.rows for worker in summary.engine.workers.values())


def test_unlike_engines_answer_one_table(tmp_path, tiny_gpt2):
    path = write(tmp_path / "in.jsonl", [{"question": f"{QUESTIONS[i % 8]} {i}"} for i in range(120)])
    workers = "workers=[{backend: transformers, cpus: 1}, {backend: openvino, cpus: 1, rows_per_block: 4}]"
    model = ["conf=smollm2_cpu", "model=local", f"model.source={tiny_gpt2}", "generation.max_new_tokens=16"]
    summary = run_batch(batch_settings(f"input.path={path}", f"output.path={tmp_path / 'out'}", *model, workers))
    check_rows(tmp_path / "out", 120)
    assert all(row["error"] is None for row in rows_of(tmp_path / "out"))
    done = summary.engine.pools
    assert {name: pool.backend for name, pool in done.items()} == {
        "transformers": "transformers",
        "openvino": "openvino",
    }
    assert sum(pool.rows for pool in done.values()) >= 120
    run = json.loads((tmp_path / "out/_hfray/run.json").read_text())
    assert run["models"].keys() == done.keys()


def test_a_pool_that_this_machine_will_never_hold_is_named(tmp_path, questions):
    for pool, word in (("{device: gpu}", "workers[1].device.index=0"), ("{cpus: 64}", "workers[1].cpus=64")):
        with pytest.raises(SettingsError) as caught:
            run_pools(questions, tmp_path / "out", fake("fits"), pool)
        assert word in str(caught.value)
    with pytest.raises(SettingsError, match="together"):
        run_pools(questions, tmp_path / "out", fake("a", cpus=3), fake("b", cpus=3))
