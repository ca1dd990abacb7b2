"""The promise over generated tables: one row in, one row out, values unchanged, whatever dies meanwhile.

Ray takes no part: the test drives the same pieces as the job. A run is killed between two files, or in the middle of
writing one. HFRAY_EXAMPLES=20000 runs 20,000 random tables instead of 450 fixed ones.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from hypothesis import HealthCheck, event, given, settings

from hfray.batch.preflight import Job, prepare
from hfray.completion import Completion
from hfray.config.batch import BatchSettings
from hfray.data import files, readers
from hfray.data.records import OUTPUT_COLUMNS, answered, python_rows
from hfray.errors import RequestError, SettingsError, WriteError
from hfray.inference.prompts import RecordPrompt
from tests.batch.tables import KEY, Case, InputFile, cases
from tests.conftest import batch_settings

EXAMPLES = int(os.environ.get("HFRAY_EXAMPLES", "450"))
OPTIONS = {
    "deadline": None,
    "database": None,
    "derandomize": "HFRAY_EXAMPLES" not in os.environ,
    "suppress_health_check": list(HealthCheck),
}


class KilledError(BaseException):
    """Ends a run as a signal does: nothing is cleaned up."""


@pytest.fixture(scope="module", autouse=True)
def fast_disk():
    """No flushing: a power cut is not what these tests are about. Package versions are read once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        patch.setattr("hfray.batch.preflight.versions", dict)
        yield


@pytest.fixture(scope="module")
def base() -> BatchSettings:
    return batch_settings("conf=fake", "input.path=-", "output.path=-", "prompt.template=x")


@settings(max_examples=50, **OPTIONS)
@given(case=cases())
def test_no_table_breaks_the_promise(base, case):
    check(base, case)


@pytest.mark.model
@pytest.mark.timeout(0)
@settings(max_examples=EXAMPLES, **OPTIONS)
@given(case=cases())
def test_no_table_of_many_breaks_the_promise(base, case):
    check(base, case)


def check(base: BatchSettings, case: Case) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "SLICE_BYTES", case.slice_bytes)
        source, out = Path(folder) / "in", Path(folder) / "out"
        source.mkdir()
        for file in case.files:
            (source / file.name).write_bytes(file.content)
        plain = settings_of(base, case, source, out)
        try:
            job = prepare(plain)
        except SettingsError:
            if case.usable:
                raise
            event("refused")
            return
        for finished, how in case.kills:
            before = rows_in(out)
            killed_run(job, case, finished, how, patch)
            assert set(before) <= set(rows_in(out))
            job = prepare(plain)
        left = answer(job, case)
        assert left == job.pending_rows
        compare(case, job, rows_in(out))
        assert prepare(plain).pending_rows == 0
        if case.retry_errors:
            again = prepare(replace(plain, output=replace(plain.output, retry_errors=True)))
            assert answer(again, case) == again.pending_rows
            compare(case, again, rows_in(out))


def settings_of(base: BatchSettings, case: Case, source: Path, out: Path) -> BatchSettings:
    keyed = any(KEY in (values or {}) for file in case.files for _, values in file.rows)
    template = f"Say {{{KEY}}}" if keyed else "Say something"
    return replace(
        base,
        input=replace(
            base.input,
            path=str(source),
            limit=case.limit,
            id_column=KEY if case.by_id and keyed else None,
            columns=case.columns if keyed else None,
        ),
        output=replace(base.output, path=str(out)),
        prompt=replace(base.prompt, template=template),
    )


def answer(job: Job, case: Case) -> int:
    """Answer every row that is not done, a file for each block; returns how many rows that were."""
    prompts, count = RecordPrompt(job.settings.prompt), 0
    blocks = (block for piece in job.table.slices for block in readers.read(job.table, piece, case.rows_per_block))
    for number, block in enumerate(map(job.done.drop_from, blocks)):
        if block.num_rows:
            texts, completions = zip(*(_completed(prompts, row) for row in python_rows(block)), strict=True)
            part = f"part-{job.run_id}-{number:05d}.parquet"
            job.output.write_part(part, [answered(block, texts, completions)], job.run_id)
        count += block.num_rows
    return count


def _completed(prompts: RecordPrompt, row: dict[str, object]) -> tuple[str | None, Completion]:
    try:
        if row["error"] is not None:
            raise RequestError(str(row["error"]))
        return prompts.render(row).text, Completion(text="x", finish_reason="stop")
    except RequestError as error:
        return None, Completion(error=str(error))


def killed_run(job: Job, case: Case, finished: int, how: str, patch: pytest.MonkeyPatch) -> None:
    """Run until `finished` files are written, then die: between two files, before or after the rename of the next
    one, or because the disk is full."""
    rename, renames = os.rename, itertools.count()

    def dying_rename(source: str, target: str) -> None:
        if not target.endswith(".parquet") or next(renames) < finished:
            return rename(source, target)
        if how == "full":
            raise OSError(28, "No space left on device")
        if how == "after":
            rename(source, target)
        raise KilledError

    with patch.context() as inner:
        inner.setattr("os.rename", dying_rename)
        with contextlib.suppress(KilledError, WriteError):
            answer(job, case)


def rows_in(out: Path) -> dict[str, dict[str, object]]:
    """The rows of the output folder by id; every id occurs once."""
    if not list(out.glob("*.parquet")):
        return {}
    rows = python_rows(ds.dataset(sorted(map(str, out.glob("*.parquet")))).to_table())
    by_id = {str(row["row_id"]): row for row in rows}
    assert len(by_id) == len(rows)
    return by_id


def compare(case: Case, job: Job, found: dict[str, dict[str, object]]) -> None:
    expected = expected_rows(case, job.settings.input.id_column)
    assert list(found.keys() ^ expected.keys()) == []
    for row_id, (file, values) in expected.items():
        row = found[row_id]
        if values is None:
            assert row["error"]
            assert all(row[name] is None for name in row if name not in OUTPUT_COLUMNS)
            continue
        if case.usable:
            assert row["error"] is None or "the prompt needs it" in str(row["error"]), row["error"]
        for name in set(row) - set(OUTPUT_COLUMNS):
            kind = job.table.schema.field(name).type
            if not (row[name] is None and row["error"]):
                assert same(values.get(name), row[name], kind, "jsonl" in file.name), (name, kind, values, row)


def expected_rows(case: Case, id_column: str | None) -> dict[str, tuple[InputFile, dict[str, object] | None]]:
    rows = {}
    for file in case.files:
        for position, values in file.rows:
            key = values.get(id_column) if values and id_column else None
            rows[str(key) if key is not None else f"{file.name}:{position}"] = (file, values)
    return dict(itertools.islice(rows.items(), case.limit))


def same(given: object, found: object, kind: pa.DataType, is_json: bool) -> bool:
    """Whether a value came out as it went in. A JSON column of mixed kinds holds JSON text."""
    if is_json and pa.types.is_string(kind) and given is not None and not isinstance(given, str):
        found = json.loads(str(found))
    if isinstance(given, bool) != isinstance(found, bool):
        return False
    if isinstance(given, dict) and isinstance(found, dict):
        return list(given) == list(found) and all(map(_same_item, given.values(), found.values()))
    if isinstance(given, list) and isinstance(found, list):
        return len(given) == len(found) and all(map(_same_item, given, found))
    return given == found or (given != given and found != found)


def _same_item(given: object, found: object) -> bool:
    return same(given, found, pa.null(), False)
