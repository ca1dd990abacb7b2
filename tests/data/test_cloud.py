"""Object storage on a local S3 server: tables, models, output, resume, and no secret in any file or message."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from hfray.config.secrets import credentials_in
from hfray.data import readers
from hfray.data.done_rows import DoneRows
from hfray.data.output import OutputFolder
from hfray.data.parts import drop_failed_rows
from hfray.data.paths import open_filesystem
from hfray.data.records import output_schema
from hfray.data.scan import scan
from hfray.errors import SettingsError, SupersededError
from hfray.urls import file_address, without_query
from tests.conftest import S3_SECRET as SECRET
from tests.conftest import batch_settings, run_job
from tests.processes import WAIT_SECONDS


@pytest.fixture(autouse=True)
def _credentials(s3_environment, monkeypatch):
    for key, value in s3_environment.items():
        monkeypatch.setenv(key, value)


def put(s3, key: str, content: bytes | str) -> None:
    s3.put_object(Bucket="bucket", Key=key, Body=content)


def keys(s3, prefix: str) -> list[str]:
    return [o["Key"] for o in s3.list_objects_v2(Bucket="bucket", Prefix=prefix).get("Contents", [])]


def questions(count: int) -> str:
    return "".join(json.dumps({"question": f"Number {i}?"}) + "\n" for i in range(count))


def settings(*overrides: str):
    return batch_settings("conf=fake", "output.path=-", *overrides)


@pytest.mark.parametrize("spelling", ["environment", "url"])
def test_tables_in_object_storage(s3, s3_query, spelling, monkeypatch):
    query = ""
    if spelling == "url":
        monkeypatch.delenv("AWS_ENDPOINT_URL")
        query = s3_query
    put(s3, "tables/one/a b%.jsonl", questions(3))
    put(s3, "tables/one/more/c.jsonl.gz", gzip.compress(questions(2).encode()))
    put(s3, "tables/one/_skipped.jsonl", questions(9))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"question": ["p"]}), sink)
    put(s3, "tables/two/t.parquet", sink.getvalue().to_pybytes())
    for path, ids in {
        "tables/one": ["a b%.jsonl:0", "a b%.jsonl:1", "a b%.jsonl:2", "more/c.jsonl.gz:0", "more/c.jsonl.gz:1"],
        "tables/one/more/*.gz": ["c.jsonl.gz:0", "c.jsonl.gz:1"],
        "tables/two/t.parquet": ["t.parquet:0"],
    }.items():
        table = scan(settings(f"input.path=s3://bucket/{path}{query}").input)
        found = [
            i for piece in table.slices for block in readers.read(table, piece, 2) for i in block["row_id"].to_pylist()
        ]
        assert found == ids


def test_missing_table_names_key_and_value():
    with pytest.raises(SettingsError, match=r"input\.path=s3://bucket/nothing"):
        scan(settings("input.path=s3://bucket/nothing").input)


@pytest.mark.parametrize("spelling", ["environment", "url"])
def test_output_folder(s3, s3_query, spelling, monkeypatch):
    query = ""
    if spelling == "url":
        monkeypatch.delenv("AWS_ENDPOINT_URL")
        query = s3_query
    folder = OutputFolder(f"s3://bucket/out-{spelling}{query}")
    assert not folder.is_local
    assert folder.parts() == []
    folder.prepare()
    folder.prepare()  # again, as a resumed run does
    folder.write_json("owner.json", {"run_id": "me"})
    schema = output_schema(pa.schema([("question", pa.string())]))
    columns = {name: [None, None] for name in schema.names} | {"row_id": ["t:0", "t:1"], "error": [None, "bad"]}
    folder.write_part("part-me-00000.parquet", [pa.table(columns, schema=schema)], "me")
    assert folder.foreign_files() == []
    assert len(folder.parts()) == 1
    assert folder.read_json("nothing.json") is None
    done = DoneRows.read(folder, by_position=True)
    assert (done.count, done.failed) == (2, 1)
    assert drop_failed_rows(folder, folder.parts()[0]) == 1
    assert DoneRows.read(folder, by_position=True).count == 1
    folder.write_json("owner.json", {"run_id": "another"})
    with pytest.raises(SupersededError):
        folder.write_part("part-me-00001.parquet", [pa.table(columns, schema=schema)], "me")
    folder.clear()
    assert folder.parts() == []


def test_model_is_fetched_once_and_again_when_it_changes(s3, tmp_path, monkeypatch):
    from hfray.models.source import fetch

    monkeypatch.setenv("HFRAY_CACHE", str(tmp_path))
    model = settings("input.path=-", "model.source=s3://bucket/model").model
    with pytest.raises(SettingsError, match=r"model\.source=s3://bucket/model"):
        fetch(model)
    put(s3, "model/config.json", "{}")
    put(s3, "model/model.safetensors", b"weights")
    first = fetch(model)
    assert (first / "model.safetensors").read_bytes() == b"weights"
    assert fetch(model) == first
    put(s3, "model/model.safetensors", b"other weights")
    second = fetch(model)
    assert (second / "model.safetensors").read_bytes() == b"other weights"
    assert len([line for log in tmp_path.rglob("*.made") for line in log.read_text().splitlines()]) == 2


@pytest.mark.ray
def test_a_killed_job_resumes_and_no_secret_is_written(s3, s3_environment, shared_ray):
    put(s3, "job/table.jsonl", questions(120))
    environment = shared_ray | s3_environment
    command = ["conf=fake", "input.path=s3://bucket/job/table.jsonl", "output.path=s3://bucket/job-out"]
    slow = ["backend.step_seconds=0.1", "backend.tokens_per_step=4", "backend.batch_size=8", "output.flush_seconds=0.5"]
    killed = subprocess.Popen([sys.executable, "-m", "jobs.batch", *command, *slow], env=environment)
    try:
        deadline = time.monotonic() + WAIT_SECONDS
        while not any(key.endswith(".parquet") for key in keys(s3, "job-out")):
            assert killed.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        killed.kill()
        killed.wait()
    done = run_job(*command, env=environment)
    assert done.returncode == 0, done.stderr
    again = run_job(*command, env=environment)
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stdout + again.stderr
    filesystem, root = open_filesystem("s3://bucket/job-out", "output.path")
    ids = ds.dataset(root, filesystem=filesystem, format="parquet").to_table()["row_id"].to_pylist()
    assert sorted(ids) == sorted({f"table.jsonl:{i}" for i in range(120)})
    written = b"".join(s3.get_object(Bucket="bucket", Key=key)["Body"].read() for key in keys(s3, "job-out"))
    said = "".join(run.stdout + run.stderr for run in (done, again))
    assert SECRET.encode() not in written
    assert SECRET not in said


@pytest.mark.parametrize("key", ["input.path", "output.path", "model.source"])
@pytest.mark.parametrize("url", [f"s3://AKIA:{SECRET}@bucket/x", f"s3://bucket/x?secret_key={SECRET}"])
def test_secrets_in_urls_are_refused_without_repeating_them(key, url):
    with pytest.raises(SettingsError) as refusal:
        batch_settings("conf=fake", "input.path=-", "output.path=-", f"{key}={url}")
    assert key in str(refusal.value)
    assert "environment" in str(refusal.value)
    assert SECRET not in str(refusal.value)


def test_tokens_in_settings_are_not_written():
    from hfray.config.secrets import to_plain

    plain = to_plain(settings("input.path=-", f"model.kwargs.token={SECRET}", "model.kwargs.max_tokens=7"))
    assert plain["model"]["kwargs"] == {"token": "***", "max_tokens": 7}


def test_addresses_of_other_clouds():
    """Google's and Azure's addresses are opened but not read, because there is no test server for them."""
    filesystem, path = open_filesystem("gs://anonymous@bucket/a/b.jsonl", "input.path")
    assert (filesystem.type_name, path) == ("gcs", "bucket/a/b.jsonl")
    assert file_address("gs://anonymous@bucket/a", "bucket/a/b c") == "gs://anonymous@bucket/a/b%20c"
    assert file_address("abfss://box@account.dfs.core.windows.net/a", "box/a/b").endswith("windows.net/a/b")
    assert file_address("/a", "/a/b?c=d") == "/a/b?c=d"
    assert without_query("s3://bucket/x.jsonl?scheme=http") == "s3://bucket/x.jsonl"
    assert without_query("s3://bucket/x?.jsonl") == "s3://bucket/x?.jsonl"
    assert credentials_in("abfss://box@account.dfs.core.windows.net/a") is None
    assert credentials_in("gs://anonymous@bucket/a") is None
    with pytest.raises(SettingsError, match="what://x"):
        open_filesystem("what://x/y", "input.path")
