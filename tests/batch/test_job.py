"""The whole job on the fake engine: rows in, rows out, good and bad input, resume, errors."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import psutil
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from hfray.batch.job import run_batch
from hfray.data.jsontypes import JSON_TEXT
from hfray.data.records import OUTPUT_COLUMNS
from hfray.errors import ExitCode, JobError, SettingsError
from tests.batch.running import rows_of, run_fake, write
from tests.conftest import QUESTIONS, batch_settings, run_job

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("shared_ray")]


@pytest.fixture(scope="module")
def finished_job(tmp_path_factory, shared_ray) -> Path:
    """A folder with a table `questions.jsonl` and the output folder `out` of a job. Tests may only read it."""
    folder = tmp_path_factory.mktemp("finished")
    source = write(folder / "questions.jsonl", [{"question": q, "n": i} for i, q in enumerate(QUESTIONS)])
    assert run_fake(source, folder / "out").exit_code == ExitCode.OK
    return folder


@pytest.fixture
def finished(finished_job, tmp_path) -> tuple[Path, Path]:
    """The table, and an own copy of the output folder."""
    return finished_job / "questions.jsonl", shutil.copytree(finished_job / "out", tmp_path / "out")


def test_one_row_in_one_row_out(finished_job):
    rows = rows_of(finished_job / "out")
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
    part = next((finished_job / "out").glob("*.parquet"))
    assert pq.ParquetFile(part).metadata.row_group(0).column(0).compression == "ZSTD"


def test_equal_prompts_are_answered_once_and_all_have_their_row(tmp_path):
    path = write(tmp_path / "in.jsonl", [{"question": f"row {i % 20}", "n": i} for i in range(80)])
    log = tmp_path / "log"
    summary = run_fake(path, tmp_path / "out", f"backend.answer_log={log}", "workers.rows_per_block=16")
    rows = rows_of(tmp_path / "out")
    assert sorted(row["n"] for row in rows) == list(range(80))
    assert len({(row["question"], row["generated_text"]) for row in rows}) == 20
    assert len(log.read_text().splitlines()) == 20
    assert summary.engine.rows_of_equal_prompts == 60
    assert summary.engine.saved_tokens.generated == sum(row["num_generated_tokens"] for row in rows) * 3 / 4


def test_run_and_summary_files(finished_job):
    run = json.loads((finished_job / "out/_hfray/run.json").read_text())
    summary = json.loads((finished_job / "out/_hfray/summary.json").read_text())
    assert run["settings"]["backend"]["name"] == "fake"
    assert run["fingerprint"]["prompt.template"].startswith("Question")
    assert run["versions"]["ray"].startswith("2.60")
    assert (summary["rows"], summary["written"]["rows"], summary["exit_code"]) == (8, 8, 0)
    assert summary["engine"]["steps"] > 0


def test_bad_rows_become_error_rows_and_the_others_are_answered(tmp_path):
    good = [{"question": f"good {i}", "meta": {"k": i}} for i in range(60)]
    bad = [
        {"question": None, "meta": {"k": 1}},
        {"other": 1},
        '{"question": "torn',
        {"question": "long " * 20_000, "meta": {"k": 2}},
    ]
    odd = [{"question": text} for text in ("", "😀", "שלום", "nul \x00")]
    path = write(tmp_path / "in.jsonl", good[:30] + bad + odd + good[30:])
    summary = run_fake(path, tmp_path / "out", "backend.context_length=50000", "errors.max_fraction=0.1")
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


def test_columns_of_json_text_say_so_in_the_output_and_in_the_output_of_the_next_job(tmp_path):
    rows = [{"question": f"row {n}", "large": 2**64 + n, "mixed": n % 2 or "odd"} for n in range(40)]
    path = write(tmp_path / "in.jsonl", rows)
    run_fake(path, tmp_path / "out", "workers.rows_per_block=16")
    for part in (tmp_path / "out").glob("*.parquet"):
        pq.write_table(pq.read_table(part).drop_columns(OUTPUT_COLUMNS), tmp_path / "next.parquet")
    run_fake(tmp_path / "next.parquet", tmp_path / "again")
    for out in (tmp_path / "out", tmp_path / "again"):
        schema = ds.dataset(list(map(str, out.glob("*.parquet")))).schema
        assert [name for name in schema.names if schema.field(name).metadata == JSON_TEXT] == ["large", "mixed"]
    assert {row["large"] for row in rows_of(tmp_path / "again")} == {str(2**64 + n) for n in range(40)}


def test_too_many_errors_stop_the_job_with_the_most_frequent(tmp_path):
    path = write(tmp_path / "in.jsonl", [{"question": "bad" if i % 4 else "fine"} for i in range(400)])
    summary = run_fake(path, tmp_path / "out", "backend.fail_on='Question: bad'")
    assert summary.exit_code == ExitCode.TOO_MANY_ERRORS
    assert "errors.max_fraction=0.05" in summary.message
    assert "told to fail" in summary.message
    assert rows_of(tmp_path / "out")


def test_finished_jobs_do_nothing_and_resumed_ones_only_what_is_left(questions, tmp_path):
    out = tmp_path / "out"
    run_fake(questions, out, "input.limit=3")
    first = {path.name: path.read_bytes() for path in out.glob("*.parquet")}
    again = run_fake(questions, out, "input.limit=3")
    assert again.message.startswith("all rows are done")
    assert "engine_ready" not in again.timeline
    summary = run_fake(questions, out)
    assert (summary.rows_done_before, summary.written.rows) == (3, 5)
    assert [row["question"] for row in rows_of(out)] == QUESTIONS
    assert all((out / name).read_bytes() == content for name, content in first.items())


def test_other_settings_into_the_same_folder_are_refused_by_name(finished):
    source, out = finished
    before = (out / "_hfray/run.json").read_bytes()
    with pytest.raises(SettingsError) as caught:
        run_fake(source, out, "prompt=chat", "generation.max_new_tokens=7")
    for word in (
        "prompt.template was",
        "prompt.chat was False and is True",
        "generation.max_new_tokens was 128 and is 7",
    ):
        assert word in str(caught.value)
    assert (out / "_hfray/run.json").read_bytes() == before
    same_text = ["workers.size=2", "output.rows_per_file=5", "backend.batch_size=3", "errors.max_fraction=0.5"]
    assert run_fake(source, out, *same_text).exit_code == ExitCode.OK


def test_failed_rows_are_done_again_on_request_and_leave_one_row_each(questions, tmp_path):
    out = tmp_path / "out"
    first = run_fake(questions, out, "backend.fail_on=planet|Hamlet", "errors.max_fraction=0.5")
    assert first.written.failed == 2
    assert run_fake(questions, out, "errors.max_fraction=0.5").message.startswith("all rows are done")
    again = run_fake(questions, out, "output.retry_errors=true")
    rows = rows_of(out)
    assert (again.written.rows, again.failed_total) == (2, 0)
    assert [row["question"] for row in rows] == QUESTIONS
    assert all(row["error"] is None for row in rows)


def test_rows_of_earlier_runs_that_were_computed_otherwise_are_told(questions, tmp_path, capfd):
    """As after a move to a machine that computes in another precision: run.json tells what the first run computed in."""
    out = tmp_path / "out"
    run_fake(questions, out, "input.limit=4")
    about = json.loads((out / "_hfray/run.json").read_text())
    assert about["precisions"] == ["fp32"]
    (out / "_hfray/run.json").write_text(json.dumps(about | {"precisions": ["bf16"]}))
    run_fake(questions, out)
    assert json.loads((out / "_hfray/run.json").read_text())["precisions"] == ["bf16", "fp32"]
    assert "workers compute in fp32; earlier runs computed in bf16: the text of a row" in capfd.readouterr().err
    run_fake(questions, out, "output.overwrite=true")
    assert json.loads((out / "_hfray/run.json").read_text())["precisions"] == ["fp32"]


def test_overwrite_starts_over(finished):
    source, out = finished
    summary = run_fake(source, out, "generation.max_new_tokens=7", "output.overwrite=true")
    assert summary.written.rows == 8
    assert len(rows_of(out)) == 8


@pytest.mark.parametrize(
    ("setup", "overrides", "words"),
    [
        (None, ["prompt.template='{text}'"], ["{text}", "not a column", "question"]),
        (None, ["prompt.template='{question'"], ["prompt.template", "f-string"]),
        ("foreign", [], ["output.path", "notes.txt"]),
        ("alive", [], ["output.path", "another run"]),
        ("file", [], ["output.path"]),
        ("done", ["output.resume=false"], ["output.path", "output.resume=true"]),
    ],
)
def test_unusable_output_or_prompt_is_named(questions, tmp_path, setup, overrides, words, request):
    source, out = questions, tmp_path / "out"
    if setup == "foreign":
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    elif setup == "file":
        out.write_text("a file")
    elif setup == "done":
        source, _ = request.getfixturevalue("finished")
    elif setup == "alive":
        (out / "_hfray").mkdir(parents=True)
        parent = psutil.Process(os.getppid())
        owner = {"run_id": "x", "host": socket.gethostname(), "pid": parent.pid, "began": parent.create_time()}
        (out / "_hfray/owner.json").write_text(json.dumps(owner))
    with pytest.raises(SettingsError) as caught:
        run_fake(source, out, *overrides)
    for word in words:
        assert word in str(caught.value)


def test_a_worker_that_cannot_start_ends_the_job_once_with_the_cause(questions, tmp_path, tiny_gpt2, shared_ray):
    broken = tmp_path / "model"
    broken.mkdir()
    for file in tiny_gpt2.iterdir():
        (broken / file.name).write_bytes(file.read_bytes()[: 10_000 if file.suffix == ".safetensors" else None])
    settings = [f"model.source={broken}", "conf=smollm2_cpu", "model=local"]
    done = run_job(f"input.path={questions}", f"output.path={tmp_path / 'out'}", *settings, env=shared_ray)
    assert done.returncode == 1
    assert "error: a worker cannot start: SafetensorError" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_model_without_chat_template_is_refused_before_any_row(questions, tmp_path, tiny_gpt2, capfd):
    model = tmp_path / "model"
    shutil.copytree(tiny_gpt2, model, ignore=lambda _, names: [name for name in names if "chat_template" in name])
    settings = [f"model.source={model}", "conf=smollm2_cpu", "model=local", "prompt=chat"]
    with pytest.raises(SettingsError, match=r"^prompt\.chat=true: the model has no chat template"):
        run_batch(batch_settings(f"input.path={questions}", f"output.path={tmp_path / 'out'}", *settings))
    assert "Traceback" not in "".join(capfd.readouterr())
    assert not list((tmp_path / "out").glob("*.parquet"))


def test_a_full_disk_fails_the_job_and_leaves_no_half_file(questions, tmp_path, monkeypatch):
    """The output folder is on a file system of a few kilobytes, where a write fails with ENOSPC."""
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
            run_fake(path, small / "out")
        assert not list((small / "out").glob("*.parquet"))
        assert not list((small / "out/_hfray").glob("writing-*/*"))
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


def test_without_a_gpu_the_error_names_presets_that_run(questions, tmp_path):
    with pytest.raises(SettingsError) as caught:
        run_batch(batch_settings("conf=bloom_gpu", f"input.path={questions}", f"output.path={tmp_path / 'out'}"))
    for word in ("device.index=0", "GPU", "smollm2_openvino"):
        assert word in str(caught.value)


def test_sampled_answers_of_equal_prompts_differ_by_row_and_repeat_between_runs(tmp_path):
    path = write(tmp_path / "in.jsonl", [{"question": "the same"}] * 40)
    sampled = ["generation.temperature=1", "workers.rows_per_block=16"]
    run_fake(path, tmp_path / "out", *sampled)
    texts = {row["row_id"]: row["generated_text"] for row in rows_of(tmp_path / "out")}
    assert len(set(texts.values())) > 20
    run_fake(path, tmp_path / "again", *sampled, "workers.rows_per_block=7")
    assert texts == {row["row_id"]: row["generated_text"] for row in rows_of(tmp_path / "again")}
