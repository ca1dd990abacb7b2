"""How many rows a block has: few enough bytes, whatever the format of the input."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfray.batch import pipeline
from hfray.config.batch import InputSettings
from hfray.data.scan import scan
from tests.batch.running import QUICK
from tests.conftest import batch_settings


def rows_per_block(path, *overrides: str) -> int:
    settings = batch_settings(*QUICK, f"input.path={path}", "output.path=-", *overrides)
    table = scan(InputSettings(path=str(path)))
    pool = SimpleNamespace(workers=SimpleNamespace(bounds=(1, 1)))
    job = SimpleNamespace(settings=settings, table=table, pending_rows=100_000)
    return pipeline.rows_per_block(cast(Any, job), cast(Any, [pool]))


@pytest.mark.parametrize("format_name", ["jsonl", "csv", "text", "parquet"])
@pytest.mark.parametrize("overrides", [(), ("workers.rows_per_block=500",)])
def test_blocks_of_large_rows_have_few(format_name, overrides, tmp_path):
    for name, length, expected in [("large", 300_000, (70, 140)), ("small", 10, (500, 1024))]:
        path = tmp_path / f"{name}.{'txt' if format_name == 'text' else format_name}"
        texts = [f"{number:04} " + "x" * length for number in range(40)]
        if format_name == "parquet":
            pq.write_table(pa.table({"question": texts}), path, use_dictionary=False)
        elif format_name == "jsonl":
            path.write_text("".join(json.dumps({"question": text}) + "\n" for text in texts))
        else:
            path.write_text("\n".join(["question", *texts]) + "\n")
        assert expected[0] <= rows_per_block(path, *overrides) <= expected[1]


def test_a_block_has_at_least_one_row(monkeypatch, tmp_path):
    monkeypatch.setattr(pipeline, "MAX_BLOCK_BYTES", 10)
    (tmp_path / "in.jsonl").write_text(json.dumps({"question": "x" * 100}) + "\n")
    assert rows_per_block(tmp_path / "in.jsonl") == 1
