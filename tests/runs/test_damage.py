"""Damaged and foreign files in an output folder: a clear SettingsError (exit code 2), never a traceback."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfray.data.done_rows import DoneRows
from hfray.data.output import OutputFolder
from hfray.errors import SettingsError
from hfray.runs.about import read_about
from hfray.runs.compare import CompareSettings, PageOutput, compare
from hfray.runs.compare_page import page
from hfray.runs.report import try_report
from hfray.runs.status import read_status
from tests.folders import row, write_part, write_run, write_settings

JSON_DAMAGE = [b"", b"{", b"[]", b'"text"', b"\xff\xfe", b"17", b"[" * 100_000]
PART_DAMAGE = [b"", b"PAR1", b"no parquet at all" * 100]


@pytest.fixture
def folder(tmp_path):
    write_part(tmp_path / "a", "aaaa", 0, [row(n) for n in range(10)])
    write_run(tmp_path / "a", "aaaa", 10)
    write_settings(tmp_path / "a", {"task": "t"})
    return tmp_path / "a"


def comparison(folder, other=None) -> CompareSettings:
    return CompareSettings(first=str(folder), second=str(other or folder), output=PageOutput(path="page.html"))


@pytest.mark.parametrize("content", [*JSON_DAMAGE, b'{"rows": "many"}', b'{"samples": 3}'])
def test_a_damaged_record(folder, content):
    (folder / "_hfray/run-aaaa.json").write_bytes(content)
    with pytest.raises(SettingsError, match=r"output\.path=.*run-aaaa\.json.*Delete the file"):
        read_status(str(folder))
    with pytest.raises(SettingsError, match=r"first=.*run-aaaa\.json"):
        compare(comparison(folder))


@pytest.mark.parametrize("content", [*JSON_DAMAGE, b'{"settings": 3}'])
def test_a_damaged_run_json(folder, content, capsys):
    (folder / "_hfray/run.json").write_bytes(content)
    with pytest.raises(SettingsError, match=r"output\.path=.*run\.json.*overwrite=true"):
        read_about(OutputFolder(str(folder)))
    with pytest.raises(SettingsError, match=r"first=.*run\.json"):
        compare(comparison(folder))
    assert try_report(OutputFolder(str(folder))) is None
    assert "cannot write the report" in capsys.readouterr().err


@pytest.mark.parametrize("content", PART_DAMAGE)
def test_a_damaged_part(folder, content):
    (folder / "part-aaaa-00001.parquet").write_bytes(content)
    with pytest.raises(SettingsError, match=r"output\.path=.*part-aaaa-00001\.parquet cannot be read.*delete it"):
        read_status(str(folder))
    with pytest.raises(SettingsError, match=r"output\.path=.*part-aaaa-00001\.parquet cannot be read"):
        DoneRows.read(OutputFolder(str(folder)), by_position=True)
    with pytest.raises(SettingsError, match=r"first=.*part-aaaa-00001\.parquet cannot be read"):
        compare(comparison(folder))


def test_a_truncated_part(folder):
    path = folder / "part-aaaa-00000.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SettingsError, match="cannot be read"):
        read_status(str(folder))


@pytest.mark.parametrize(
    "columns",
    [
        {"text": ["a"]},
        {
            "row_id": [1],
            "generated_text": ["a"],
            "finish_reason": ["stop"],
            "num_generated_tokens": [1],
            "error": ["x"],
        },
    ],
)
def test_foreign_parquet(folder, tmp_path, columns):
    (tmp_path / "b").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "b/data.parquet")
    with pytest.raises(SettingsError, match=r"second=.*was not written by an hfray job.*row_id"):
        compare(comparison(folder, tmp_path / "b"))


def test_an_undamaged_folder_is_read(folder):
    assert read_status(str(folder)).complete
    assert "10 of 10 answers are equal" in page(comparison(folder), compare(comparison(folder)))
