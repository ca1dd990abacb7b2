"""The checks before a run, without Ray: changes of the input between runs, and the rows that are not done."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfray.batch.preflight import prepare
from hfray.completion import Completion
from hfray.data import readers
from hfray.data.records import answered
from hfray.errors import SettingsError
from tests.conftest import batch_settings


def write(path, numbers) -> None:
    path.write_text("".join(json.dumps({"question": f"What is {n}?", "n": n}) + "\n" for n in numbers))


def settings_for(path, out, *overrides):
    return batch_settings("conf=fake", f"input.path={path}", f"output.path={out}", *overrides)


def run(settings) -> int:
    """Answer every row that is not done, without engines; returns the number of rows."""
    job = prepare(settings)
    with job.lease:
        blocks = [job.done.drop_from(b) for piece in job.table.slices for b in readers.read(job.table, piece, 100)]
        block = pa.concat_tables(blocks)
        assert block.num_rows == job.pending_rows
        if block.num_rows:
            completions = [Completion(text="x", finish_reason="stop")] * block.num_rows
            rows = answered(block, ["p"] * block.num_rows, completions)
            job.output.write_part(f"part-{job.run_id}-00000.parquet", [rows], job.run_id)
    return job.pending_rows


def test_a_prepended_line_is_refused_and_named(tmp_path):
    table, out = tmp_path / "t.jsonl", tmp_path / "out"
    write(table, range(20))
    assert run(settings_for(table, out, "input.limit=10")) == 10
    write(table, range(-1, 20))
    with pytest.raises(SettingsError, match=r"'t\.jsonl' changed .* output\.overwrite=true"):
        prepare(settings_for(table, out))
    assert run(settings_for(table, out, "output.overwrite=true")) == 21
    write(table, range(5))
    with pytest.raises(SettingsError, match=r"'t\.jsonl' changed"):
        prepare(settings_for(table, out))


def test_appended_rows_and_new_files_are_pending(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    write(folder / "a.jsonl", range(10))
    assert run(settings_for(folder, out)) == 10
    assert run(settings_for(folder, out)) == 0
    write(folder / "a.jsonl", range(12))
    assert run(settings_for(folder, out)) == 2
    write(folder / "b.jsonl", range(3))
    assert run(settings_for(folder, out)) == 3
    assert run(settings_for(folder, out)) == 0


def test_a_new_first_file_with_another_order_of_keys_is_resumed(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    write(folder / "b.jsonl", range(3))
    assert run(settings_for(folder, out)) == 3
    (folder / "a.jsonl").write_text('{"n": 7, "question": "What is 7?"}\n')
    assert run(settings_for(folder, out)) == 1
    parts = [pq.read_table(part) for part in sorted(out.glob("*.parquet"))]
    assert parts[0].schema.equals(parts[1].schema)
    assert sorted(n for part in parts for n in part["n"].to_pylist()) == [0, 1, 2, 7]


def test_another_column_is_refused_by_name(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    write(folder / "b.jsonl", range(3))
    assert run(settings_for(folder, out)) == 3
    (folder / "a.jsonl").write_text('{"n": 7, "question": "What is 7?", "new": 1}\n')
    with pytest.raises(SettingsError, match=r"the columns of the existing output differ .*\(new\)"):
        prepare(settings_for(folder, out))


def test_done_rows_outside_a_smaller_limit_hide_no_missing_row(tmp_path):
    table, out = tmp_path / "t.jsonl", tmp_path / "out"
    write(table, range(20))
    assert run(settings_for(table, out, "input.limit=15")) == 15
    assert run(settings_for(table, out, "input.limit=5")) == 0
    assert run(settings_for(table, out)) == 5


def test_rows_with_ids_are_recognized_in_a_changed_file(tmp_path):
    table, out = tmp_path / "t.jsonl", tmp_path / "out"
    write(table, range(20))
    assert run(settings_for(table, out, "input.id_column=n")) == 20
    write(table, range(15, 30))  # 15 rows: fewer than are done, and 10 of them new
    assert run(settings_for(table, out, "input.id_column=n")) == 10


def test_a_damaged_manifest_is_named(tmp_path):
    table, out = tmp_path / "t.jsonl", tmp_path / "out"
    write(table, range(3))
    run(settings_for(table, out))
    (out / "_hfray" / "input.json").write_text('{"files": 3}')
    with pytest.raises(SettingsError, match=r"input\.json cannot be read or is damaged"):
        prepare(settings_for(table, out))


def test_a_folder_of_an_older_version_resumes_without_a_manifest(tmp_path):
    table, out = tmp_path / "t.jsonl", tmp_path / "out"
    write(table, range(3))
    run(settings_for(table, out))
    (out / "_hfray" / "input.json").unlink()
    write(table, range(4))
    assert run(settings_for(table, out)) == 1
