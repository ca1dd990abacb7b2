"""The output folder: files appear complete or not at all, one run owns the folder, and damage is named."""

from __future__ import annotations

import os
import pathlib
import pickle
import stat

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfray.completion import Completion
from hfray.data.done_rows import DoneRows
from hfray.data.output import OutputFolder
from hfray.data.parts import drop_failed_rows
from hfray.data.paths import open_filesystem
from hfray.data.records import RecordRow, answered, python_rows, read_schema
from hfray.errors import SettingsError, SupersededError, WriteError


def rows(ids, error_at=()):
    schema = read_schema(pa.schema([pa.field("q", pa.string())]))
    block = pa.table({"q": ids, "row_id": ids, "error": pa.nulls(len(ids), pa.string())}, schema=schema)
    failed, good = Completion(error="bad"), Completion("text", "stop", 2, 3)
    return answered(block, ids, [failed if i in error_at else good for i in range(len(ids))])


@pytest.fixture
def output(tmp_path):
    folder = OutputFolder(str(tmp_path / "out"))
    folder.prepare()
    folder.claim("mine", {"run_id": "mine"})
    return folder


def test_a_part_is_counted_and_its_rows_are_done(output):
    report = output.write_part("part-mine-0.parquet", [rows(["a:0", "a:2"], {1}), rows(["b:9"])], "mine")
    assert (report.rows, report.failed, report.prompt_tokens, report.generated_tokens) == (3, 1, 4, 6)
    assert (report.errors, report.finish_reasons) == ({"bad": 1}, {"stop": 2, "error": 1})
    for by_position in (True, False):
        done = DoneRows.read(output, by_position)
        assert (done.count, done.failed) == (3, 1)
        assert done.drop_from(rows(["a:0", "a:1", "a:2"]))["row_id"].to_pylist() == ["a:1"]
        assert done.drop_from(rows(["b:8", "b:9", "b:1000"]))["row_id"].to_pylist() == ["b:8", "b:1000"]


def test_a_file_is_on_the_disk_before_it_appears(output, monkeypatch):
    """After a power cut, a renamed file whose content was not flushed is empty."""
    steps, fsync, rename = [], os.fsync, os.rename

    def flushed(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        has_content = os.fstat(descriptor).st_size > 0
        steps.append("flush the folder" if is_folder else "flush" if has_content else "flush nothing")
        fsync(descriptor)

    def renamed(source: str, target: str) -> None:
        steps.append("rename")
        rename(source, target)

    monkeypatch.setattr("os.fsync", flushed)
    monkeypatch.setattr("os.rename", renamed)
    output.write_part("part-mine-0.parquet", [rows(["a:0"])], "mine")
    assert steps == ["flush", "rename", "flush the folder"]


def test_another_run_in_the_folder_stops_this_one(output):
    output.write_json("owner.json", {"run_id": "theirs"})
    with pytest.raises(SupersededError, match=r"another run \(theirs\)"):
        output.write_part("part-mine-0.parquet", [rows(["a:0"])], "mine")
    assert output.parts() == []


def test_a_failed_write_leaves_no_file(output, monkeypatch):
    def full(source: str, target: str) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("hfray.data.output.os.rename", full)
    with pytest.raises(WriteError, match=r"part-mine-0\.parquet.*no space left"):
        output.write_part("part-mine-0.parquet", [rows(["a:0"])], "mine")
    assert output.parts() == []
    assert not list(pathlib.Path(output.root).glob("_hfray/*/part*"))


def test_failed_rows_can_be_dropped_and_answered_again(output):
    output.write_part("part-mine-0.parquet", [rows(["a:0", "a:1"], {1})], "mine")
    output.write_part("part-mine-1.parquet", [rows(["a:2"], {0})], "mine")
    assert [drop_failed_rows(output, part) for part in output.parts()] == [1, 1]
    assert [pq.read_table(part)["row_id"].to_pylist() for part in output.parts()] == [["a:0"]]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(50)])
def test_a_damaged_part_is_named(output, tmp_path, content):
    (tmp_path / "out" / "part-x.parquet").write_bytes(content)
    with pytest.raises(SettingsError, match=r"part-x\.parquet cannot be read.*delete it"):
        DoneRows.read(output, by_position=True)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_damaged_json_file_is_named(output, tmp_path, content):
    assert output.read_json("run.json") is None
    (tmp_path / "out" / "_hfray" / "run.json").write_bytes(content)
    with pytest.raises(SettingsError, match=r"_hfray/run\.json cannot be read or is damaged.*Delete that file"):
        output.read_json("run.json")


def test_foreign_files_are_listed_and_a_file_in_place_of_the_folder_is_named(output, tmp_path):
    (tmp_path / "out" / "notes.txt").touch()
    assert output.foreign_files() == ["notes.txt"]
    with pytest.raises(SettingsError, match="is not writable"):
        OutputFolder(str(tmp_path / "out" / "notes.txt")).prepare()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    """A file where the parent folder should be: no user may write there, root included."""
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"output\.path=.*file/out: is not writable .* Use a writable folder"):
        OutputFolder(str(tmp_path / "file" / "out")).prepare()


def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    """A file where the folder should be: root, too, cannot list it."""
    (tmp_path / "out").touch()
    for list_files in (OutputFolder.parts, OutputFolder.foreign_files):
        with pytest.raises(
            SettingsError, match=r"output\.path=.*out: cannot be read .* Use a folder that you can read"
        ):
            list_files(OutputFolder(str(tmp_path / "out")))


@pytest.mark.parametrize("name", [".DS_Store", "_SUCCESS", "._part-a-00000.parquet", ".git"])
def test_hidden_files_of_other_tools_do_not_matter_and_stay(output, tmp_path, name):
    hidden = tmp_path / "out" / name
    hidden.write_text("x")
    assert output.foreign_files() == []
    assert output.parts() == []
    output.clear()
    assert hidden.exists()


# --- records ---------------------------------------------------------------------------------------------------


def test_one_row_in_one_row_out():
    with pytest.raises(RuntimeError, match="2 rows in, 1 prompts"):
        answered(rows(["a", "b"]).select(["q", "row_id", "error"]), ["a"], [Completion()])


def test_one_record_becomes_the_row_of_the_batch_job():
    row = RecordRow("id").read({"id": 7, "q": "x", "tags": ["a"]})
    assert (row.row_id, row.values) == ("7", {"id": 7, "q": "x", "tags": ["a"]})
    out = row.answered("cut \ud83d", Completion("t", "stop", 1, 1), None)
    assert (out["prompt"], out["generated_text"], out["error"]) == ("cut ?", "t", None)
    assert row.answered(None, None, "bad")["error"] == "bad"
    assert RecordRow(None).read({"q": 1}).row_id == "record"
    with pytest.raises(ValueError, match="name of an output column"):
        RecordRow(None).read({"prompt": "x"})
    with pytest.raises(ValueError, match="cannot be a row"):
        RecordRow(None).read({"q": "\ud83d"})


def test_times_beyond_python_are_text():
    block = pa.table({"x": pa.array([0, 400_000_000_000], pa.timestamp("s")), "n": [{"t": 1}, {"t": 2}]})
    found = python_rows(block)
    assert (found[0]["x"].year, found[1]["x"], found[1]["n"]) == (1970, "14645-06-30 15:06:40", {"t": 2})
    assert len(python_rows(pa.table({"x": pa.array([1], pa.timestamp("s", tz="Mars/X"))}))) == 1


def test_filesystems(tmp_path):
    assert open_filesystem(str(tmp_path), "k")[1] == str(tmp_path)
    assert open_filesystem("file:///a%20b", "k")[1] == "/a b"
    with pytest.raises(SettingsError, match="k=what://x"):
        open_filesystem("what://x", "k")


def test_a_damaged_list_of_accepted_files_is_a_settings_error(tmp_path):
    output = OutputFolder(str(tmp_path))
    output.prepare()
    output.write_json("accepted-aaaa.json", {"parts": "not a list"})
    with pytest.raises(SettingsError, match=r"output\.path=.*accepted-aaaa\.json.*Delete that file"):
        output.drop_unaccepted("aaaa")


def test_only_the_path_is_sent_to_other_processes(tmp_path):
    """An open filesystem may hold credentials."""
    folder = OutputFolder(str(tmp_path))
    assert folder.filesystem is folder.filesystem
    sent = pickle.loads(pickle.dumps(folder))
    assert vars(sent) == {"path": str(tmp_path)}
    assert sent.root == folder.root
