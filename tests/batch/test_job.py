"""The whole job: rows in, rows out, whatever the input; run as its users run it, or in one shared Ray."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys

import psutil
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from hfray.batch.job import run_batch
from hfray.data.records import OUTPUT_COLUMNS
from hfray.errors import ExitCode, JobError, SettingsError
from tests.conftest import QUESTIONS, batch_settings, run_job
from tests.processes import Hold, wait_for_file

QUICK = ["conf=fake", "output.flush_seconds=0.5"]


@pytest.fixture(scope="module", autouse=True)
def shared_ray():
    import ray

    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def job(path, output, *overrides):
    return run_batch(batch_settings(f"input.path={path}", f"output.path={output}", *QUICK, *overrides))


def rows_of(output):
    table = ds.dataset(str(output), exclude_invalid_files=False, ignore_prefixes=["_"]).to_table()
    return sorted(table.to_pylist(), key=lambda row: row["row_id"])


def test_one_row_in_one_row_out(questions, tmp_path):
    summary = job(questions, tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert summary.exit_code == ExitCode.OK
    assert [row["question"] for row in rows] == QUESTIONS
    assert [row["n"] for row in rows] == list(range(8))
    assert list(rows[0]) == ["question", "n", *OUTPUT_COLUMNS]
    for row in rows:
        assert row["prompt"] == f"Question: {row['question']}\n\nAnswer: Let's think step by step."
        assert row["generated_text"]
        assert row["finish_reason"] in ("stop", "length")
        assert row["error"] is None
        assert row["num_prompt_tokens"] == len(row["prompt"].encode())
        assert row["num_generated_tokens"] == len(row["generated_text"].encode())
    part = next((tmp_path / "out").glob("*.parquet"))
    assert pq.ParquetFile(part).metadata.row_group(0).column(0).compression == "ZSTD"


def test_equal_prompts_are_answered_once_and_all_have_their_row(tmp_path):
    path = write(tmp_path / "in.jsonl", [{"question": f"row {i % 20}", "n": i} for i in range(80)])
    log = tmp_path / "log"
    summary = job(path, tmp_path / "out", f"backend.answer_log={log}", "workers.rows_per_block=16")
    rows = rows_of(tmp_path / "out")
    assert sorted(row["n"] for row in rows) == list(range(80))
    assert len({(row["question"], row["generated_text"]) for row in rows}) == 20
    assert len(log.read_text().splitlines()) == 20
    assert summary.engine.rows_of_equal_prompts == 60
    assert summary.engine.saved_tokens.generated == sum(row["num_generated_tokens"] for row in rows) * 3 / 4


def test_run_and_summary_files(questions, tmp_path):
    job(questions, tmp_path / "out")
    run = json.loads((tmp_path / "out/_hfray/run.json").read_text())
    summary = json.loads((tmp_path / "out/_hfray/summary.json").read_text())
    assert run["settings"]["backend"]["name"] == "fake"
    assert run["fingerprint"]["prompt.template"].startswith("Question")
    assert run["versions"]["ray"].startswith("2.60")
    assert (summary["rows"], summary["written"]["rows"], summary["exit_code"]) == (8, 8, 0)
    assert summary["engine"]["steps"] > 0


def test_bad_rows_become_error_rows_and_the_rest_goes_on(tmp_path):
    good = [{"question": f"good {i}", "meta": {"k": i}} for i in range(60)]
    bad = [
        {"question": None, "meta": {"k": 1}},
        {"other": 1},
        '{"question": "torn',
        {"question": "long " * 20_000, "meta": {"k": 2}},
    ]
    odd = [{"question": text} for text in ("", "😀", "שלום", "nul \x00")]
    path = write(tmp_path / "in.jsonl", good[:30] + bad + odd + good[30:])
    summary = job(path, tmp_path / "out", "backend.context_length=50000", "errors.max_fraction=0.1")
    rows = {row["row_id"]: row for row in rows_of(tmp_path / "out")}
    assert len(rows) == 68
    errors = {int(i.split(":")[1]): row["error"] for i, row in rows.items() if row["error"] is not None}
    assert "'question' is null" in errors[30]
    assert "'question' is null" in errors[31]
    assert errors[32].startswith("in.jsonl, line 33: is not JSON")
    assert "50000" in errors[33]
    assert "tokens" in errors[33]
    assert set(errors) == {30, 31, 32, 33}
    assert all(rows[f"in.jsonl:{i}"]["generated_text"] is None for i in errors)
    assert all(rows[f"in.jsonl:{i}"]["finish_reason"] == "error" for i in errors)
    assert rows["in.jsonl:30"]["meta"] == {"k": 1}
    assert (summary.exit_code, summary.written.failed) == (ExitCode.OK, 4)


def test_too_many_errors_stop_the_job_with_the_most_frequent(tmp_path):
    path = write(tmp_path / "in.jsonl", [{"question": "bad" if i % 4 else "fine"} for i in range(400)])
    summary = job(path, tmp_path / "out", "backend.fail_on='Question: bad'")
    assert summary.exit_code == ExitCode.TOO_MANY_ERRORS
    assert "errors.max_fraction=0.05" in summary.message
    assert "told to fail" in summary.message
    assert rows_of(tmp_path / "out")


def test_finished_jobs_do_nothing_and_resumed_ones_only_what_is_left(questions, tmp_path):
    out = tmp_path / "out"
    job(questions, out, "input.limit=3")
    first = {path.name: path.read_bytes() for path in out.glob("*.parquet")}
    again = job(questions, out, "input.limit=3")
    assert again.message.startswith("all rows are done")
    assert "engine_ready" not in again.timeline
    summary = job(questions, out)
    assert (summary.rows_done_before, summary.written.rows) == (3, 5)
    assert [row["question"] for row in rows_of(out)] == QUESTIONS
    assert all((out / name).read_bytes() == content for name, content in first.items())


def test_other_settings_into_the_same_folder_are_refused_by_name(questions, tmp_path):
    job(questions, tmp_path / "out")
    before = (tmp_path / "out/_hfray/run.json").read_bytes()
    with pytest.raises(SettingsError) as caught:
        job(questions, tmp_path / "out", "prompt=chat", "generation.max_new_tokens=7")
    for word in (
        "prompt.template was",
        "prompt.chat was False and is True",
        "generation.max_new_tokens was 128 and is 7",
    ):
        assert word in str(caught.value)
    assert (tmp_path / "out/_hfray/run.json").read_bytes() == before
    same_text = ["workers.size=2", "output.rows_per_file=5", "backend.batch_size=3", "errors.max_fraction=0.5"]
    assert job(questions, tmp_path / "out", *same_text).exit_code == ExitCode.OK


def test_failed_rows_are_done_again_on_request_and_leave_one_row_each(questions, tmp_path):
    out = tmp_path / "out"
    first = job(questions, out, "backend.fail_on=planet|Hamlet", "errors.max_fraction=0.5")
    assert first.written.failed == 2
    assert job(questions, out, "errors.max_fraction=0.5").message.startswith("all rows are done")
    again = job(questions, out, "output.retry_errors=true")
    rows = rows_of(out)
    assert (again.written.rows, again.failed_total) == (2, 0)
    assert [row["question"] for row in rows] == QUESTIONS
    assert all(row["error"] is None for row in rows)


def test_overwrite_starts_over(questions, tmp_path):
    job(questions, tmp_path / "out", "input.limit=4")
    summary = job(questions, tmp_path / "out", "generation.max_new_tokens=7", "output.overwrite=true")
    assert summary.written.rows == 8
    assert len(rows_of(tmp_path / "out")) == 8


@pytest.mark.parametrize(
    ("setup", "overrides", "words"),
    [
        (None, ["prompt.template='{text}'"], ["{text}", "no column", "question"]),
        (None, ["prompt.template='{question'"], ["prompt.template", "f-string"]),
        ("foreign", [], ["output.path", "notes.txt"]),
        ("alive", [], ["output.path", "another run"]),
        ("file", [], ["output.path"]),
        ("done", ["output.resume=false"], ["output.path", "output.resume=true"]),
    ],
)
def test_unusable_output_or_prompt_is_named(questions, tmp_path, setup, overrides, words):
    out = tmp_path / "out"
    if setup == "foreign":
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    elif setup == "file":
        out.write_text("a file")
    elif setup == "done":
        job(questions, out)
    elif setup == "alive":
        (out / "_hfray").mkdir(parents=True)
        parent = psutil.Process(os.getppid())
        owner = {"run_id": "x", "host": socket.gethostname(), "pid": parent.pid, "began": parent.create_time()}
        (out / "_hfray/owner.json").write_text(json.dumps(owner))
    with pytest.raises(SettingsError) as caught:
        job(questions, out, *overrides)
    for word in words:
        assert word in str(caught.value)


def test_a_killed_worker_costs_nothing(tmp_path):
    path, out = write(tmp_path / "in.jsonl", [{"question": f"row {i}"} for i in range(160)]), tmp_path / "out"

    def kill(pids: list[int]) -> None:
        wait_for_file(out)
        os.kill(pids[0], signal.SIGKILL)

    hold = Hold(tmp_path, 24)
    with hold.acting(1, kill):
        summary = job(path, out, "backend.batch_size=8", "workers.rows_per_block=8", *hold.overrides)
    rows = rows_of(out)
    assert summary.engine.workers_replaced == 1
    assert len({row["row_id"] for row in rows}) == len(rows) == 160


@pytest.mark.parametrize(("poison", "deaths"), [({20}, 4), ({18, 30}, 6)])
def test_rows_that_kill_their_worker_become_error_rows(poison, deaths, tmp_path):
    """Also two in one block, far apart: each is found, and none that was beside them."""
    path = write(tmp_path / "in.jsonl", [{"question": "poison" if i in poison else f"row {i}"} for i in range(48)])
    summary = job(path, tmp_path / "out", "backend.die_on=poison", "workers.rows_per_block=16")
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 48
    assert {row["row_id"] for row in rows if row["error"]} == {f"in.jsonl:{i}" for i in poison}
    assert [row["question"] for row in rows if row["error"]] == ["poison"] * len(poison)
    assert "ended its worker's process" in next(row["error"] for row in rows if row["error"])
    assert summary.engine.workers_replaced == deaths


@pytest.mark.parametrize("fault", ["hang", "freeze"])
def test_a_hung_engine_is_replaced_and_its_row_isolated(fault, tmp_path):
    path = write(tmp_path / "in.jsonl", [{"question": "hang" if i == 3 else f"row {i}"} for i in range(24)])
    job(path, tmp_path / "out", f"backend.{fault}_on=hang", "workers.step_timeout=1.5", "errors.max_fraction=0.1")
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 24
    assert [row["question"] for row in rows if row["error"]] == ["hang"]


def test_a_worker_that_cannot_start_ends_the_job_once_with_the_cause(questions, tmp_path, tiny_gpt2):
    broken = tmp_path / "model"
    broken.mkdir()
    for file in tiny_gpt2.iterdir():
        (broken / file.name).write_bytes(file.read_bytes()[: 10_000 if file.suffix == ".safetensors" else None])
    settings = [f"model.source={broken}", "conf=smollm2_cpu", "model=local"]
    done = run_job(f"input.path={questions}", f"output.path={tmp_path / 'out'}", *settings)
    assert done.returncode == 1
    assert "error: a worker cannot start: SafetensorError" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_full_disk_fails_the_job_and_leaves_no_half_file(questions, tmp_path, monkeypatch):
    """The disk is full as the file system says it: ENOSPC from a write, on a file system of a few kilobytes."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        path = write(tmp_path / "in.jsonl", [{"question": os.urandom(2000).hex()} for _ in range(60)])
        with pytest.raises(JobError, match=r"part-.*cannot be written.*No space left"):
            job(path, small / "out")
        assert not list((small / "out").glob("*.parquet"))
        assert not list((small / "out/_hfray/writing").iterdir())
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize(("backend", "model"), [("transformers", "tiny_gpt2"), ("openvino", "tiny_gpt2_ir")])
def test_real_engines_through_the_whole_job(questions, tmp_path, request, backend, model):
    folder = request.getfixturevalue(model)
    out = tmp_path / "out"
    engine = [f"model.source={folder}", "model=local", "conf=smollm2_cpu", f"backend={backend}"]
    settings = batch_settings(f"input.path={questions}", f"output.path={out}", *engine, "generation.max_new_tokens=8")
    summary = run_batch(settings)
    rows = rows_of(out)
    assert summary.exit_code == ExitCode.OK
    assert [row["question"] for row in rows] == QUESTIONS
    assert all(row["error"] is None and row["num_prompt_tokens"] > 5 for row in rows)


def test_no_gpu_is_exit_2_and_names_presets_that_run(questions, tmp_path):
    done = run_job("conf=bloom_gpu", f"input.path={questions}", f"output.path={tmp_path / 'out'}")
    assert done.returncode == 2
    for word in ("device.index=0", "GPU", "smollm2_openvino"):
        assert word in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(tmp_path, sent):
    path = write(tmp_path / "in.jsonl", [{"question": f"row {i}"} for i in range(400)])
    out = tmp_path / "out"
    held = ["backend.batch_size=16", "workers.rows_per_block=16", *Hold(tmp_path, 32).overrides]
    command = [sys.executable, "-m", "jobs.batch", f"input.path={path}", f"output.path={out}", *QUICK, *held]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_file(out)
    process.send_signal(sent)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    done = len(rows_of(out))
    assert 0 < done < 400
    summary = job(path, out)
    assert summary.rows_done_before == done
    assert len(rows_of(out)) == 400


def test_equal_prompts_that_are_sampled_are_answered_unlike_and_each_always_alike(tmp_path):
    path = write(tmp_path / "in.jsonl", [{"question": "the same"}] * 40)
    sampled = ["generation.temperature=1", "workers.rows_per_block=16"]
    job(path, tmp_path / "out", *sampled)
    texts = {row["row_id"]: row["generated_text"] for row in rows_of(tmp_path / "out")}
    assert len(set(texts.values())) > 20
    job(path, tmp_path / "again", *sampled, "workers.rows_per_block=7")
    assert texts == {row["row_id"]: row["generated_text"] for row in rows_of(tmp_path / "again")}
