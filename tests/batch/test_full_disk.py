"""A disk that is full at the wrong moment, and a run with nothing to do: the state of the run's own files."""

import errno
import json
from pathlib import Path

import pytest

from hfray.batch.job import _finish
from hfray.batch.preflight import prepare
from hfray.data.output import OutputFolder
from hfray.data.partreport import PartReport
from hfray.errors import ExitCode, SettingsError
from hfray.runs.summary import Summary
from tests.conftest import batch_settings


@pytest.fixture
def settings(questions, tmp_path):
    return batch_settings("conf=fake", f"input.path={questions}", f"output.path={tmp_path}/out")


def fill(monkeypatch, name: str) -> None:
    """Make every write of `_hfray/name` fail, as on a full disk."""
    write = OutputFolder.write_text

    def write_text(self: OutputFolder, file: str, content: str) -> None:
        if file == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, file, content)

    monkeypatch.setattr(OutputFolder, "write_text", write_text)


@pytest.mark.parametrize("name", ["run.json", "owner.json"])
def test_no_room_for_the_files_of_the_run(settings, monkeypatch, name):
    fill(monkeypatch, name)
    with pytest.raises(SettingsError, match=r"output\.path=.*No space left.*Free some space"):
        prepare(settings)


def test_no_room_for_the_summary_only(settings, monkeypatch, capsys):
    job = prepare(settings)
    fill(monkeypatch, "summary.json")
    summary = Summary(rows=8, written=PartReport(rows=8), timeline={"command": 0.0})
    assert _finish(summary, job).exit_code == ExitCode.OK
    assert "cannot write summary.json: [Errno 28]" in capsys.readouterr().err


def test_a_run_with_nothing_to_do_keeps_the_summary(settings):
    job = prepare(settings)
    path = Path(job.output.path, "_hfray/summary.json")
    _finish(Summary(rows=8, written=PartReport(rows=8), timeline={"command": 0.0}), job)
    _finish(Summary(rows=8, rows_done_before=8, timeline={"command": 0.0}), job, ran=False)
    assert json.loads(path.read_text())["written"]["rows"] == 8
    path.unlink()
    _finish(Summary(rows=8, rows_done_before=8, timeline={"command": 0.0}), job, ran=False)
    assert json.loads(path.read_text())["rows_done_before"] == 8
