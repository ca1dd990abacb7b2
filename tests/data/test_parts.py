"""Opening finished files, and dropping failed rows from them."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfray.data.output import OutputFolder
from hfray.data.parts import drop_failed_rows, open_part
from hfray.errors import SettingsError
from tests.folders import row, write_part


def only_part(path) -> tuple[OutputFolder, str]:
    output = OutputFolder(str(path))
    (part,) = output.parts()
    return output, part


def test_a_part_with_wider_types_reads_like_our_own(tmp_path):
    table = pa.table({"row_id": pa.array(["a"], pa.large_string()), "num_prompt_tokens": pa.array([1], pa.int64())})
    pq.write_table(table, tmp_path / "part-aaaa-00000.parquet")
    with open_part(*only_part(tmp_path), ["row_id", "num_prompt_tokens"]) as parquet:
        assert parquet.read().num_rows == 1


def test_a_foreign_file_is_named_with_its_missing_column(tmp_path):
    pq.write_table(pa.table({"row_id": [1]}), tmp_path / "part-aaaa-00000.parquet")
    with (
        pytest.raises(SettingsError, match=r"first=.*not written by an hfray job: column row_id, error is missing"),
        open_part(*only_part(tmp_path), ["row_id", "error"], key="first"),
    ):
        pass


def test_failed_rows_are_dropped(tmp_path):
    write_part(tmp_path, "aaaa", 0, [row(0), row(1, error="bad"), row(2)])
    output, part = only_part(tmp_path)
    assert drop_failed_rows(output, part) == 1
    with open_part(output, part) as parquet:
        assert parquet.read()["row_id"].to_pylist() == ["t.jsonl:0", "t.jsonl:2"]
    assert drop_failed_rows(output, part) == 0


def test_a_part_with_failed_rows_only_is_deleted(tmp_path):
    write_part(tmp_path, "aaaa", 0, [row(0, error="bad")])
    assert drop_failed_rows(*only_part(tmp_path)) == 1
    assert OutputFolder(str(tmp_path)).parts() == []
