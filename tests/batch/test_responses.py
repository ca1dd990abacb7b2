"""Typed answers in a whole job: columns, retries, counts, resume."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfray.data.responses import SCHEMA_KEY
from hfray.errors import ExitCode, SettingsError
from tests.batch.running import rows_of, run_fake, table, write
from tests.schemas import DIFFERENT_PAIR, REVIEW

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("shared_ray")]
ROOM = "generation.max_new_tokens=200"


def schema(value: dict) -> str:
    return f"response.schema={json.dumps(value)}"


def test_a_schema_in_typed_columns_out(tmp_path):
    summary = run_fake(table(tmp_path, 40), tmp_path / "out", schema(REVIEW), ROOM)
    assert summary.exit_code == ExitCode.OK
    assert summary.written.responses == {"valid": 40, "invalid": 0, "retried": 0}
    for part in (tmp_path / "out").glob("*.parquet"):
        found = pq.read_schema(part)
        assert found.field("response").type == pa.struct(
            [("sentiment", pa.string()), ("stars", pa.int64()), ("topics", pa.list_(pa.string()))]
        )
        assert json.loads(found.metadata[SCHEMA_KEY]) == REVIEW
    for row in rows_of(tmp_path / "out"):
        assert row["response"] == json.loads(row["generated_text"])
        assert (row["num_attempts"], row["error"]) == (1, None)


def test_rows_are_tried_again_then_they_fail_with_their_text(tmp_path):
    path = table(tmp_path, 60)
    run_fake(path, tmp_path / "once", schema(DIFFERENT_PAIR), "response.retries=0", "errors.max_fraction=1")
    summary = run_fake(path, tmp_path / "out", schema(DIFFERENT_PAIR), "response.retries=1", "errors.max_fraction=1")
    once, rows = rows_of(tmp_path / "once"), rows_of(tmp_path / "out")
    failed = [row for row in rows if row["error"]]
    assert 0 < len(failed) < sum(row["error"] is not None for row in once)
    assert all(row["generated_text"] and row["response"] is None and row["num_attempts"] == 2 for row in failed)
    assert summary.written.failed == len(failed)
    retried = sum(row["num_attempts"] > 1 for row in rows)
    assert summary.written.responses == {"valid": 60 - len(failed), "invalid": len(failed), "retried": retried}
    again = run_fake(
        path, tmp_path / "again", schema(DIFFERENT_PAIR), "errors.max_fraction=1", "workers.rows_per_block=3"
    )
    assert again.written.responses == summary.written.responses
    assert [row["generated_text"] for row in rows_of(tmp_path / "again")] == [row["generated_text"] for row in rows]


def test_flattened_columns_and_a_resume_with_another_schema(tmp_path):
    path, out = table(tmp_path, 6), tmp_path / "out"
    run_fake(path, out, schema(REVIEW), ROOM, "response.flatten=true", "input.limit=3")
    run_fake(path, out, schema(REVIEW), ROOM, "response.flatten=true")
    rows = rows_of(out)
    assert len(rows) == 6
    assert all(row["stars"] in range(1, 6) and "response" not in row for row in rows)
    with pytest.raises(SettingsError, match=r"response\.schema was"):
        run_fake(path, out, schema(DIFFERENT_PAIR), ROOM)


def test_each_row_may_have_its_own_choices(tmp_path):
    lists = [["red", "blue"], ["one", "two", "three"], None, ["same", "same"]]
    path = write(tmp_path / "in.jsonl", [{"question": f"q{i}", "labels": lists[i % 4]} for i in range(12)])
    run_fake(path, tmp_path / "out", "response.choice=labels", "errors.max_fraction=1")
    for row in rows_of(tmp_path / "out"):
        if row["labels"] in lists[:2]:
            assert row["response"] == row["generated_text"]
            assert row["response"] in row["labels"]
        else:
            assert "column 'labels' must hold a list of different texts" in row["error"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["response.choice=missing"], "response.choice=missing: is not a column of the input"),
        ([schema(REVIEW | {"properties": {"question": {}}, "required": []}), "response.flatten=true"], "'question'"),
    ],
)
def test_columns_that_do_not_fit_are_refused_before_the_run(tmp_path, given, words):
    with pytest.raises(SettingsError, match=words):
        run_fake(table(tmp_path, 2), tmp_path / "out", *given)


def test_a_thought_has_a_column_of_its_own(tmp_path):
    run_fake(table(tmp_path, 3), tmp_path / "out", schema(REVIEW), ROOM, "response.after_reasoning=true")
    for row in rows_of(tmp_path / "out"):
        assert row["reasoning"] == "The row is short."
        assert row["response"] == json.loads(row["generated_text"])
    run_fake(table(tmp_path, 3), tmp_path / "plain", "generation.split_reasoning=true")
    assert all(row["reasoning"] is None and row["generated_text"] for row in rows_of(tmp_path / "plain"))


def test_a_prompt_may_hold_the_schema(tmp_path):
    template = "prompt.template=Answer {question} as {response_schema}"
    run_fake(table(tmp_path, 2), tmp_path / "out", schema(REVIEW), ROOM, template)
    assert all(row["prompt"].endswith(json.dumps(REVIEW)) for row in rows_of(tmp_path / "out"))
