"""A table is plain data."""

import pickle

import pyarrow as pa

from hfray.config.batch import InputSettings
from hfray.data.table import Slice, Table

SLICES = [Slice("/a.jsonl", "a.jsonl", "jsonl", 3), Slice("/b.jsonl", "b.jsonl", "jsonl", 4)]


def table() -> Table:
    schema = pa.schema([("x", pa.int64()), ("y", pa.string())])
    return Table(InputSettings(path="/"), SLICES, schema, {"x": "int", "y": "string"})


def test_rows_of_all_slices():
    assert table().num_rows == 7


def test_fewer_columns():
    lean = table().with_columns(["y"])
    assert (lean.schema.names, lean.settings.columns, lean.num_rows) == (["y"], ["y"], 7)


def test_a_table_can_be_sent_to_another_process():
    assert pickle.loads(pickle.dumps(table())) == table()
