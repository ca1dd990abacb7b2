"""One run at a time owns an output folder, and a former owner can no longer add files."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import asdict

import psutil
import pyarrow as pa
import pytest

from hfray.data.output import OutputFolder
from hfray.data.records import OUTPUT_FIELDS
from hfray.errors import SettingsError, SupersededError
from hfray.runs import lease
from hfray.runs.owner import Owner
from tests.folders import row

BLOCK = pa.Table.from_pylist([row(number) for number in range(3)], schema=pa.schema(OUTPUT_FIELDS))


@pytest.fixture
def output(tmp_path):
    return OutputFolder(str(tmp_path / "out"))


@pytest.fixture
def stranger():
    """A live process that is not this one."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.communicate()


def owner_of(process, **changes) -> dict:
    began = psutil.Process(process.pid).create_time()
    here = asdict(Owner.of_this_run("before"))
    return here | {"pid": process.pid, "began": began, "birth": None} | changes


def test_an_owner_writes_and_leaves_no_heartbeat(output):
    with lease.take_over(output, overwrite=False) as held:
        assert output.read_json(f"beat-{held.run_id}.json")
        output.write_part(f"part-{held.run_id}-00000.parquet", [BLOCK], held.run_id)
    assert output.read_json(f"beat-{held.run_id}.json") is None
    assert len(output.parts()) == 1


def test_a_live_process_of_this_machine_keeps_its_folder(output, stranger):
    output.prepare()
    output.claim("before", owner_of(stranger))
    with pytest.raises(SettingsError, match=rf"output\.path=.*process {stranger.pid} on "):
        lease.take_over(output, overwrite=False)
    stranger.communicate()
    assert lease.take_over(output, overwrite=False).run_id != "before"


def test_a_process_id_of_another_container_proves_nothing(output, stranger):
    output.prepare()
    output.claim("before", owner_of(stranger, namespace="pid:[1]"))
    assert lease.take_over(output, overwrite=False)  # no heartbeat: the run ended


def test_a_run_on_another_machine_is_alive_while_its_heartbeat_changes(output, stranger, monkeypatch):
    monkeypatch.setattr(lease, "SILENT_SECONDS", 5.0)
    output.prepare()
    output.claim("before", owner_of(stranger, host="elsewhere"))
    stop = threading.Event()

    def beat() -> None:
        number = 0
        while not stop.wait(0.05):
            number += 1
            output.write_json("beat-before.json", {"number": number})

    output.write_json("beat-before.json", {"number": 0})
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(SettingsError, match="another run"):
            lease.take_over(output, overwrite=False)
    finally:
        stop.set()
        thread.join()
    monkeypatch.setattr(lease, "SILENT_SECONDS", 0.3)
    assert lease.take_over(output, overwrite=True)


@pytest.mark.parametrize("moment", ["before the file is written", "between the check and the rename"])
def test_a_former_owner_adds_nothing_whenever_it_wakes_up(output, monkeypatch, moment):
    first = lease.take_over(output, overwrite=False)
    rename, check = os.rename, OutputFolder._check_owner

    def check_then_lose(folder: OutputFolder, run_id: str) -> None:
        check(folder, run_id)
        if moment.startswith("before"):
            monkeypatch.undo()
            lease.take_over(output, overwrite=False)

    def lose_then_rename(source: str, target: str) -> None:
        if moment.startswith("between") and target.endswith(".parquet"):
            monkeypatch.undo()
            lease.take_over(output, overwrite=False)
        rename(source, target)

    monkeypatch.setattr(OutputFolder, "_check_owner", check_then_lose)
    monkeypatch.setattr("hfray.data.output.os.rename", lose_then_rename)
    with pytest.raises(SupersededError):
        output.write_part(f"part-{first.run_id}-00000.parquet", [BLOCK], first.run_id)
    assert output.parts() == []


def test_a_folder_deleted_during_the_run_is_named(output):
    held = lease.take_over(output, overwrite=False)
    output.clear()
    with pytest.raises(SupersededError, match="was deleted"):
        output.write_part(f"part-{held.run_id}-00000.parquet", [BLOCK], held.run_id)


def test_on_object_storage_a_late_file_of_a_former_owner_is_deleted(s3, s3_environment, monkeypatch):
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    output = OutputFolder("s3://bucket/lease")
    first = lease.take_over(output, overwrite=False)
    output.write_part(f"part-{first.run_id}-00000.parquet", [BLOCK], first.run_id)
    second = lease.take_over(output, overwrite=False)
    output.write_part(f"part-{second.run_id}-00000.parquet", [BLOCK], second.run_id)
    output.put(f"part-{first.run_id}-00001.parquet", b"late")
    output.drop_unaccepted(second.run_id)
    names = [os.path.basename(part) for part in output.parts()]
    assert sorted(names) == sorted([f"part-{first.run_id}-00000.parquet", f"part-{second.run_id}-00000.parquet"])
