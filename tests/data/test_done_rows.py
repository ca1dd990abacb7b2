"""Which rows are done: by position, and by id."""

import pyarrow as pa

from hfray.data.done_rows import DoneRows, hash_ids, split_positions
from hfray.data.output import OutputFolder
from tests.folders import row, write_part


def block(*ids: str) -> pa.Table:
    return pa.table({"row_id": pa.array(ids, pa.string())})


def test_rows_by_position(tmp_path):
    write_part(tmp_path, "aaaa", 0, [row(0), row(9), row(3, error="bad")])
    done = DoneRows.read(OutputFolder(str(tmp_path)), by_position=True)
    assert (done.count, done.failed) == (3, 1)
    left = done.drop_from(block(*(f"t.jsonl:{n}" for n in range(100))))
    assert left["row_id"].to_pylist() == [f"t.jsonl:{n}" for n in range(100) if n not in (0, 3, 9)]
    assert done.drop_from(block("other.jsonl:0")).num_rows == 1


def test_rows_by_id(tmp_path):
    write_part(tmp_path, "aaaa", 0, [row(0, row_id="a"), row(1, row_id="b:1")])
    done = DoneRows.read(OutputFolder(str(tmp_path)), by_position=False)
    assert done.drop_from(block("b:1", "c", "a"))["row_id"].to_pylist() == ["c"]


def test_an_empty_folder(tmp_path):
    for by_position in (True, False):
        done = DoneRows.read(OutputFolder(str(tmp_path)), by_position)
        assert done.drop_from(block("a:1")).num_rows == 1


def test_positions_of_names_with_colons_and_line_ends():
    ids = pa.array(["a:b:1", "c\nd:20", "a:b:3"])
    assert [(name, at.tolist()) for name, at in split_positions(ids)] == [("a:b", [1, 3]), ("c\nd", [20])]
    assert split_positions(pa.array([], pa.string())) == []
    assert len(set(hash_ids(["a", "b", "a"]).tolist())) == 2
