"""Several pools at one table: unlike speeds, deaths, nodes that never come; every row once, whoever answers it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque

import pytest

from hfray.batch import crew as pools
from hfray.batch.dataset import Block
from hfray.batch.job import run_batch
from hfray.batch.monitor import Monitor
from hfray.cluster.pools import pools_of
from hfray.config.batch import InputSettings
from hfray.config.secrets import to_plain
from hfray.data import readers
from hfray.data.scan import scan
from hfray.errors import ExitCode, JobError, SettingsError
from hfray.runs.fingerprint import fingerprint
from hfray.runs.report import flat
from hfray.runs.status import describe, read_status
from jobs.console import print_summary
from tests.batch.test_job import rows_of, write
from tests.conftest import QUESTIONS, batch_settings
from tests.processes import WAIT_SECONDS, Hold, wait_for_file

IO = ["input.path=in.jsonl", "output.path=out"]
QUICK = ["conf=fake", "output.flush_seconds=0.5"]


def fake(name: str, seconds: float = 0.0, hold: Hold | None = None, **more: object) -> str:
    """A pool of fake engines of 16 rows, in Hydra's grammar."""
    backend = {"name": "fake", "batch_size": 16, "step_seconds": seconds} | (hold.backend if hold else {})
    own = {"name": name, "rows_per_block": 16, "backend": backend}
    return json.dumps(own | more).replace('"', "")


@pytest.fixture(scope="module")
def shared_ray():
    import ray

    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def job(path, output, *pools: str, overrides=()):
    workers = f"workers=[{', '.join(pools)}]"
    settings = batch_settings(f"input.path={path}", f"output.path={output}", *QUICK, workers, *overrides)
    return run_batch(settings)


def table(tmp_path, rows: int):
    return write(tmp_path / "in.jsonl", [{"question": f"row {i}"} for i in range(rows)])


def check_rows(output, rows: int) -> None:
    found = rows_of(output)
    assert len({row["row_id"] for row in found}) == len(found) == rows


def test_each_row_once_and_the_fast_does_more(shared_ray, tmp_path):
    hold = Hold(tmp_path, 16)
    with hold.acting(2):
        both = fake("fast", 0.05, hold), fake("slow", 0.4, hold)
        summary = job(table(tmp_path, 1000), tmp_path / "out", *both)
    check_rows(tmp_path / "out", 1000)
    done = summary.engine.pools
    assert summary.exit_code == ExitCode.OK
    assert done["fast"].rows > 2 * done["slow"].rows > 0
    assert done["fast"].rows + done["slow"].rows == 1000
    record = json.loads((tmp_path / "out/_hfray/summary.json").read_text())
    assert record["engine"]["pools"]["slow"]["generated_tokens"] == done["slow"].generated_tokens > 0
    assert {worker["pool"] for worker in record["engine"]["workers"].values()} == {"fast", "slow"}


def test_what_each_pool_did_is_shown(shared_ray, tmp_path):
    out = tmp_path / "out"
    summary = job(table(tmp_path, 64), out, fake("left"), fake("right"), fake("gone", resources={"nowhere": 1}))
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


def test_nobody_idles_while_rows_wait(shared_ray, tmp_path):
    """Busy for all of the time but the ends: one block of the slow one's is as long as 16 of the fast one's steps."""
    done = job(table(tmp_path, 3000), tmp_path / "out", fake("fast", 0.05), fake("slow", 0.4)).engine.pools
    check_rows(tmp_path / "out", 3000)
    assert done["slow"].busy_share > 0.9
    assert done["fast"].busy_share > 0.7


def test_what_a_slow_worker_is_left_with_goes_to_an_idle_one(shared_ray, tmp_path, monkeypatch):
    monkeypatch.setattr(pools, "BACKUP_SECONDS", 1.0)
    summary = job(table(tmp_path, 200), tmp_path / "out", fake("fast", 0.1), fake("stuck", 3600))
    check_rows(tmp_path / "out", 200)
    assert summary.engine.pools["stuck"].rows == 0


def test_a_killed_worker_of_one_pool_costs_nothing(shared_ray, tmp_path):
    def kill(pids: list[int]) -> None:
        wait_for_file(tmp_path / "out")
        os.kill(pids[0], signal.SIGKILL)

    hold = Hold(tmp_path, 32)
    with hold.acting(2, kill):
        summary = job(table(tmp_path, 400), tmp_path / "out", fake("a", 0.0, hold), fake("b", 0.0, hold))
    check_rows(tmp_path / "out", 400)
    assert summary.engine.workers_replaced == 1
    assert sum(pool.deaths for pool in summary.engine.pools.values()) == 1


def test_a_worker_that_died_idle_is_given_rows_again(shared_ray, tmp_path):
    """No call tells of its death: its next process must not be taken for one that still owes what was sent before."""
    import ray

    table(tmp_path, 16 * 24)
    settings = batch_settings("input.path=in.jsonl", "output.path=out", *QUICK, f"workers=[{fake('a')}, {fake('b')}]")
    read = scan(InputSettings(path=str(tmp_path / "in.jsonl")))
    blocks = [Block(ray.put(rows), rows.num_rows) for piece in read.slices for rows in readers.read(read, piece, 16)]
    monitor = ray.remote(Monitor).remote(read.num_rows)
    with pools.Crew(pools_of(ray, settings)[:1], 16, monitor) as crew:
        answered = answer_all(crew, blocks[:12])
        member = crew.members[0]
        os.kill(member.pid, signal.SIGKILL)
        # Until this process knows of the next one, calls would go to the dead one and tell of its death.
        assert (
            ray.get(member.actor.ask.options(max_task_retries=-1).remote(0, 0), timeout=WAIT_SECONDS)[0] != member.pid
        )
        answered += answer_all(crew, blocks[12:])
        assert not crew.returned
    assert sum(block.num_rows for block in answered) == read.num_rows


def answer_all(crew, blocks):
    """Answers to blocks; then the one worker has nothing, and wants some."""
    waiting, answered, deadline = deque(blocks), [], time.monotonic() + WAIT_SECONDS
    while len(answered) < len(blocks) or not crew.members[0].wants:
        assert time.monotonic() < deadline, f"{len(answered)} of {len(blocks)} blocks were answered"
        crew.hand_out(waiting)
        answered += crew.collect(0.1)
    return answered


def test_a_row_that_kills_workers_of_any_pool_becomes_an_error_row(shared_ray, tmp_path):
    path = write(tmp_path / "in.jsonl", [{"question": "poison" if i == 20 else f"row {i}"} for i in range(48)])
    deadly = {"backend": {"name": "fake", "die_on": "poison"}}
    job(path, tmp_path / "out", fake("a", **deadly), fake("b", **deadly))
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 48
    assert [row["question"] for row in rows if row["error"]] == ["poison"]


def test_a_pool_whose_nodes_never_come_holds_nothing_up(shared_ray, tmp_path):
    summary = job(table(tmp_path, 100), tmp_path / "out", fake("gone", resources={"nowhere": 1}), fake("here"))
    check_rows(tmp_path / "out", 100)
    done = summary.engine.pools
    assert summary.exit_code == ExitCode.OK
    assert (done["gone"].workers, done["gone"].rows, done["here"].rows) == (0, 0, 100)


def test_no_pool_that_comes_up_is_the_end_with_what_each_wants(shared_ray, tmp_path):
    absent = [fake(name, resources={name: 1}, start_timeout=2) for name in ("nowhere", "elsewhere")]
    with pytest.raises(JobError, match=r"start_timeout=2: .*nowhere.*elsewhere"):
        job(table(tmp_path, 10), tmp_path / "out", *absent)


def test_a_pool_that_cannot_start_ends_the_job_with_the_cause(shared_ray, tmp_path, tiny_llama):
    broken = tmp_path / "model"
    broken.mkdir()
    for file in tiny_llama.iterdir():
        (broken / file.name).write_bytes(file.read_bytes()[: 1000 if file.suffix == ".safetensors" else None])
    bad = f"{{backend: transformers, model: {{source: {broken}}}}}"
    with pytest.raises(JobError, match="a worker cannot start: SafetensorError"):
        job(table(tmp_path, 2000), tmp_path / "out", fake("good", 0.4), bad)


def test_a_pool_grows_while_its_workers_are_full(shared_ray, tmp_path):
    hold = Hold(tmp_path, 64)
    with hold.acting(3):
        both = fake("grows", 0.0, hold, size=[1, 2]), fake("other", 0.0, hold)
        summary = job(table(tmp_path, 800), tmp_path / "out", *both)
    check_rows(tmp_path / "out", 800)
    assert summary.engine.pools["grows"].workers == 2
    assert all(worker.rows for worker in summary.engine.workers.values())


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(shared_ray, tmp_path):
    path, out = table(tmp_path, 400), tmp_path / "out"
    command = [sys.executable, "-m", "jobs.batch", f"input.path={path}", f"output.path={out}", *QUICK]
    hold = Hold(tmp_path, 32)
    command.append(f"workers=[{fake('a', 0.0, hold)}, {fake('b', 0.0, hold)}]")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_file(out)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    done = len(rows_of(out))
    assert 0 < done < 400
    assert job(path, out, fake("other", size=3), fake("order")).rows_done_before == done
    check_rows(out, 400)


def test_unlike_engines_answer_one_table(shared_ray, tmp_path, tiny_gpt2):
    path = write(tmp_path / "in.jsonl", [{"question": f"{QUESTIONS[i % 8]} {i}"} for i in range(120)])
    workers = "workers=[{backend: transformers, cpus: 1}, {backend: openvino_exact, cpus: 1, rows_per_block: 4}]"
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


# --- settings ----------------------------------------------------------------------------------------------------


def settings(*overrides: str):
    return batch_settings(*IO, *overrides)


def test_a_pool_has_what_it_names_and_else_the_jobs_own():
    workers = "workers=[{name: gpus, gpus: 2}, {backend: openvino_exact, device: cpu, size: [1, 4], cpus: 16}]"
    gpu, cpu = settings("conf=bloom_gpu", workers).pools.items()
    assert (gpu[0], gpu[1].backend.name, gpu[1].device.index, gpu[1].workers.gpus) == ("gpus", "transformers", 0, 2)
    assert (cpu[0], cpu[1].backend.ov_config["KV_CACHE_PRECISION"]) == ("openvino", "f32")
    assert (cpu[1].device.index, cpu[1].workers.bounds, cpu[1].workers.cpus) == (-1, (1, 4), 16)
    assert cpu[1].model == gpu[1].model


def test_a_list_of_one_is_that_one():
    plain = settings("backend=transformers", "workers.size=2", "workers.cpus=3")
    listed = settings("workers=[{backend: transformers, size: 2, cpus: 3}]")
    assert listed == plain


@pytest.mark.parametrize(
    ("workers", "words"),
    [
        ("[]", ["workers=[]", "names no pool"]),
        ("[{}, {cpu: 4}]", ["workers[1].cpu=4", "no such key", "workers[1].cpus"]),
        ("[{cpus: many}, {}]", ["workers[0].cpus='many'", "integer"]),
        ("[{}, {size: [3, 1]}]", ["workers[1].size=[3, 1]", "min"]),
        ("[{}, {backend: opnvino}]", ["workers[1].backend=opnvino", "Did you mean openvino"]),
        ("[{}, {backend: {weight_format: int8}}]", ["workers[1].backend", "name: openvino"]),
        ("[{}, {device: {index: 0, map: auto}}]", ["workers[1].device.index=0", "workers[1].device.map='auto'"]),
        ("[{}, {model: local}]", ["workers[1].model.source is not given"]),
        ("[{name: a}, {name: a}]", ["workers[0].name=a", "two pools"]),
        ("[{rows_per_block: 4}, {rows_per_block: 8}]", ["rows_per_block", "one number"]),
    ],
)
def test_mistakes_in_a_pool_are_named(workers, words):
    with pytest.raises(SettingsError) as caught:
        settings(f"workers={workers}")
    for word in words:
        assert word in str(caught.value)


def test_a_key_of_all_workers_beside_pools_is_named():
    with pytest.raises(SettingsError, match=r"workers\.size=3: workers is a list of pools"):
        settings("workers=[{}, {}]", "workers.size=3")


def test_a_pool_that_this_machine_will_never_hold_is_named(shared_ray, tmp_path, questions):
    for pool, word in (("{device: gpu}", "workers[1].device.index=0"), ("{cpus: 64}", "workers[1].cpus=64")):
        with pytest.raises(SettingsError) as caught:
            job(questions, tmp_path / "out", fake("fits"), pool)
        assert word in str(caught.value)
    with pytest.raises(SettingsError, match="together"):
        job(questions, tmp_path / "out", fake("a", cpus=3), fake("b", cpus=3))


def test_what_pools_run_decides_the_text_not_how_many_or_in_which_order():
    def mark(workers):
        return fingerprint(settings(f"workers={workers}"))

    one = fingerprint(settings())
    assert mark("[{size: 4}, {cpus: 2, labels: {pool: x}}]") == one
    assert mark("[{backend: openvino_exact, device: intel_gpu}, {}]") == one
    both = mark("[{}, {backend: transformers, size: 3}]")
    assert both == mark("[{backend: transformers}, {size: 2}]") != one
    assert [engine["backend"] for engine in both["engines"]] == ["openvino", "transformers"]
    assert json.loads(json.dumps(both)) == both
    assert mark("[{}, {backend: {name: openvino, weight_format: int8}}]") != one


def test_secrets_of_a_pool_are_not_written(tmp_path):
    plain = to_plain(settings("workers=[{}, {model: {source: some/model, kwargs: {token: hush}}}]"))
    assert "hush" not in json.dumps(plain)
    assert "hush" not in str(flat({"workers": [{"model": {"kwargs": {"token": "hush"}}}]}))
