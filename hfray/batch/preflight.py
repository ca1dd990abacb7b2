"""Checks before a run: settings, input and output folder; then the run takes ownership of the output folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from hfray.batch.choice import with_earlier_engines
from hfray.batch.overlap import check_overlap
from hfray.config.batch import BatchSettings
from hfray.config.secrets import to_plain
from hfray.data import manifest, readers
from hfray.data.done_rows import DoneRows
from hfray.data.output import OutputFolder
from hfray.data.parts import drop_failed_rows, open_part
from hfray.data.records import OUTPUT_COLUMNS, output_schema
from hfray.data.responses import ResponseColumns
from hfray.data.scan import scan
from hfray.data.table import Table
from hfray.errors import SettingsError
from hfray.runs.about import ABOUT, About, read_about
from hfray.runs.fingerprint import check_fingerprint, fingerprint, versions
from hfray.runs.lease import Lease, take_over
from hfray.urls import absolute

READ_ROWS = 65536  # rows per block while looking for a row that is not done


@dataclass(frozen=True, slots=True)
class Job:
    """A batch job that passed every check and owns its output folder. Its workers are known once Ray is connected.

    Attributes:
        pending_rows: rows of the table that this run has to answer.
        precisions: what the engines of earlier runs, which made the done rows, computed in.
    """

    settings: BatchSettings
    table: Table
    output: OutputFolder
    lease: Lease
    done: DoneRows
    pending_rows: int
    precisions: Sequence[str] = ()

    @property
    def run_id(self) -> str:
        return self.lease.run_id


def prepare(settings: BatchSettings) -> Job:
    """Check everything, take ownership of the output folder, and read which rows are done.

    Raises:
        SettingsError: the settings, the input or the output folder cannot be used; nothing was changed.
    """
    settings, table, output = inspect(settings)
    known = {} if settings.output.overwrite else _known_manifest(output)
    seen = manifest.check_unchanged(table, known)
    before = None if settings.output.overwrite or not output.parts() else read_about(output)
    lease = _take_over(settings, output, seen, before or About())
    if settings.output.retry_errors:
        for part in output.parts():
            drop_failed_rows(output, part)
    done = DoneRows.read(output, by_position=settings.input.id_column is None)
    return Job(settings, table, output, lease, done, count_pending(table, done), before.precisions if before else [])


def _known_manifest(output: OutputFolder) -> dict[str, manifest.FileStamp]:
    """What earlier runs of this output folder read; empty if these runs kept no manifest."""
    remedy = (
        "Delete that file to resume without checking whether the input changed, or start over with "
        "output.overwrite=true"
    )
    values = output.read_json("input.json", remedy)
    if values is None or not output.parts():
        return {}
    try:
        return manifest.from_json(values)
    except ValueError as error:
        raise output.damaged("input.json", error, remedy) from error


def count_pending(table: Table, done: DoneRows) -> int:
    """Rows of the table that are not done. Counts differ if rows are done that the table no longer holds."""
    rest = table.num_rows - done.count
    if not done.count or (rest > 0 and table.settings.limit is None and table.settings.id_column is None):
        return rest
    ids = table.settings.id_column
    lean = table.with_columns(table.schema.names[:1] if ids is None else [ids])  # row ids come with any column
    blocks = (block for piece in lean.slices for block in readers.read(lean, piece, READ_ROWS))
    return sum(done.drop_from(block).num_rows for block in blocks)


def inspect(settings: BatchSettings) -> tuple[BatchSettings, Table, OutputFolder]:
    """The checks of `prepare` alone; they change nothing.

    Returns:
        The settings, with the engines of earlier runs of the folder for `backend=auto`; the table; the output folder.

    Raises:
        SettingsError: the settings, the input or the output folder cannot be used.
    """
    from hfray.cluster.nodes import check_submitted_paths

    check_submitted_paths(settings)
    check_overlap(settings)
    variables = _template_variables(settings)
    _check_model_paths(settings)
    table = scan(settings.input)
    for name in variables:
        if name not in table.schema.names:
            raise SettingsError(
                f"prompt.template={settings.prompt.template!r}: {{{name}}} is not a column of the input. "
                f"Columns: {', '.join(table.schema.names)}. Rename it in the template, or add the column."
            )
    _check_response(settings, table)
    output = OutputFolder(absolute(settings.output.path))
    settings = with_earlier_engines(settings, output)
    return settings, _check_output(settings, output, table), output


def _template_variables(settings: BatchSettings) -> list[str]:
    from hfray.inference.prompts import RecordPrompt

    try:
        return list(RecordPrompt(settings.prompt, response=settings.response).variables)
    except ValueError as error:
        raise SettingsError(str(error)) from error


def _check_response(settings: BatchSettings, table: Table) -> None:
    """Check the columns of answers that have a form. Raises SettingsError."""
    responses, choices = ResponseColumns.of(settings), settings.response.choice_column
    if responses is not None:
        responses.check_names(table.schema.names, OUTPUT_COLUMNS)
    if choices is not None and choices not in table.schema.names:
        raise SettingsError(
            f"response.choice={choices}: is not a column of the input. Columns: {', '.join(table.schema.names)}. Name a "
            "column that holds each row's list of choices, or give one list for all rows: response.choice=[a,b]."
        )


def _check_model_paths(settings: BatchSettings) -> None:
    pools = list(settings.pools.values())
    for number, pool in enumerate(pools):
        source = pool.model.source
        key = "model.source" if len(pools) == 1 else f"workers[{number}].model.source"
        if source.startswith((".", "/", "~")) and not Path(source).expanduser().exists():
            raise SettingsError(f"{key}={source}: there is no such file or folder. Check the path.")


# --- the output folder -----------------------------------------------------------------------------------------


def _check_output(settings: BatchSettings, output: OutputFolder, table: Table) -> Table:
    """Check that the run may write to the folder or resume it; returns the table, its columns in the folder's order.

    Raises:
        SettingsError: the run may not write to the folder.
    """
    if output.filesystem.get_file_info(output.root).is_file:
        raise SettingsError(f"output.path={output.path}: is a file. Name a folder.")
    foreign = output.foreign_files()
    if foreign:
        raise SettingsError(
            f"output.path={output.path}: holds files that no hfray job made ({', '.join(foreign[:3])}). "
            "Name a new or empty folder."
        )
    parts = output.parts()
    if settings.output.overwrite or not parts:
        return table
    if not settings.output.resume:
        raise SettingsError(
            f"output.path={output.path}: holds output already. Name another folder, set output.resume=true to resume "
            "it, or set output.overwrite=true to start over."
        )
    about = read_about(output)
    if about is None:
        raise SettingsError(
            f"output.path={output.path}: holds Parquet files, but no _hfray/run.json that describes how they were "
            "made. Name another folder, or start over with output.overwrite=true."
        )
    check_fingerprint(fingerprint(settings), about.fingerprint, output.path)
    return _with_columns_of(output, parts[0], table, ResponseColumns.of(settings))


def _with_columns_of(output: OutputFolder, part: str, table: Table, responses: ResponseColumns | None) -> Table:
    """The table, its columns in the order of an existing file. Raises SettingsError if the columns differ."""
    with open_part(output, part) as parquet:
        existing = parquet.schema_arrow.remove_metadata()
    expected = output_schema(table.schema, responses)
    differ = [f.name for f in expected if f.name not in existing.names or existing.field(f.name).type != f.type]
    differ += [name for name in existing.names if name not in expected.names]
    if differ:
        raise SettingsError(
            f"output.path={output.path}: the columns of the existing output differ from the columns of this input "
            f"({', '.join(differ)}). Name another output folder, or give the same input as before."
        )
    names = [name for name in existing.names if name in table.schema.names]
    return table if names == table.schema.names else table.with_columns(names)


def _take_over(settings: BatchSettings, output: OutputFolder, seen: manifest.Manifest, before: About) -> Lease:
    """Make this run the owner of the folder, and record how its rows are made. Raises SettingsError.

    Args:
        before: the run.json of earlier runs whose rows this run keeps.
    """
    lease = take_over(output, settings.output.overwrite)
    about = About(
        run_id=lease.run_id,
        started=datetime.now(UTC).isoformat(),
        fingerprint=fingerprint(settings),
        settings=to_plain(settings),
        versions=versions(),
        precisions=before.precisions,
        chosen=before.chosen,
    )
    try:
        output.write_json("input.json", manifest.to_json(seen))
        output.write_json(ABOUT, asdict(about))
    except OSError as error:
        raise SettingsError(
            f"output.path={output.path}: cannot be written ({error}). Free some space, or name another folder."
        ) from error
    return lease
