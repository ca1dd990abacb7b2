"""Checks before a run: settings, input and output folder; then the run takes ownership of the output folder."""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from hfray.batch.overlap import check_overlap
from hfray.config.batch import BatchSettings
from hfray.config.secrets import to_plain
from hfray.data import readers
from hfray.data.done_rows import DoneRows
from hfray.data.output import OutputFolder
from hfray.data.parts import drop_failed_rows, open_part
from hfray.data.records import output_schema
from hfray.data.scan import scan
from hfray.data.table import Table
from hfray.errors import SettingsError
from hfray.runs.about import ABOUT, About, read_about
from hfray.runs.fingerprint import check_fingerprint, fingerprint, versions
from hfray.runs.owner import read_owner, write_owner
from hfray.urls import absolute

READ_ROWS = 65536  # rows per block while looking for a row that is not done


@dataclass(frozen=True, slots=True)
class Job:
    """A batch job that passed every check and owns its output folder. Its workers are known once Ray is connected."""

    settings: BatchSettings
    table: Table
    output: OutputFolder
    run_id: str
    done: DoneRows

    @property
    def pending_rows(self) -> int:
        """Rows that this run has to answer."""
        return max(0, self.table.num_rows - self.done.count)

    def is_complete(self) -> bool:
        """Whether every row is done. Reads the table if the counts alone do not decide."""
        if self.done.count < self.table.num_rows:
            return False
        blocks = (block for piece in self.table.slices for block in readers.read(self.table, piece, READ_ROWS))
        return not any(self.done.drop_from(block).num_rows for block in blocks)


def prepare(settings: BatchSettings) -> Job:
    """Check everything, take ownership of the output folder, and read which rows are done.

    Raises:
        SettingsError: the settings, the input or the output folder cannot be used; nothing was changed.
    """
    table, output = inspect(settings)
    run_id = _take_over(settings, output)
    if settings.output.retry_errors:
        for part in output.parts():
            drop_failed_rows(output, part)
    done = DoneRows.read(output, by_position=settings.input.id_column is None)
    return Job(settings, table, output, run_id, done)


def inspect(settings: BatchSettings) -> tuple[Table, OutputFolder]:
    """The checks of `prepare` alone; they change nothing.

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
                f"prompt.template={settings.prompt.template!r}: {{{name}}} is no column of the input. "
                f"Columns: {', '.join(table.schema.names)}. Rename it in the template, or add the column."
            )
    output = OutputFolder(absolute(settings.output.path))
    _check_output(settings, output, table)
    return table, output


def _template_variables(settings: BatchSettings) -> list[str]:
    from hfray.inference.prompts import RecordPrompt

    try:
        return list(RecordPrompt(settings.prompt).variables)
    except ValueError as error:
        raise SettingsError(str(error)) from error


def _check_model_paths(settings: BatchSettings) -> None:
    pools = list(settings.pools.values())
    for number, pool in enumerate(pools):
        source = pool.model.source
        key = "model.source" if len(pools) == 1 else f"workers[{number}].model.source"
        if source.startswith((".", "/", "~")) and not Path(source).expanduser().exists():
            raise SettingsError(f"{key}={source}: there is no such file or folder. Check the path.")


# --- the output folder -----------------------------------------------------------------------------------------


def _check_output(settings: BatchSettings, output: OutputFolder, table: Table) -> None:
    """Check that the run may write to the folder or resume it. Raises SettingsError."""
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
        return
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
    _check_schema(output, parts[0], table)


def _check_schema(output: OutputFolder, part: str, table: Table) -> None:
    with open_part(output, part) as parquet:
        existing = parquet.schema_arrow.remove_metadata()
    expected = output_schema(table.schema)
    if existing.equals(expected):
        return
    differ = [f.name for f in expected if f.name not in existing.names or existing.field(f.name).type != f.type]
    differ += [name for name in existing.names if name not in expected.names]
    difference = f"differ from the columns of this input ({', '.join(differ)})"
    if not differ:
        difference = (
            f"are in another order than the columns of this input (there: {', '.join(existing.names)}; "
            f"here: {', '.join(expected.names)})"
        )
    raise SettingsError(
        f"output.path={output.path}: the columns of the existing output {difference}. "
        "Name another output folder, or give the same input as before."
    )


def _take_over(settings: BatchSettings, output: OutputFolder) -> str:
    """Make this run the owner of the folder; returns the id of the run.

    Raises:
        SettingsError: another run that is alive owns the folder.
    """
    owner = read_owner(output)
    if owner and owner.blocks():
        raise SettingsError(
            f"output.path={output.path}: another run (process {owner.pid}) writes to this folder. "
            "Wait until that run ends, stop it, or name another folder."
        )
    output.prepare()
    if settings.output.overwrite:
        output.clear()
        output.prepare()
    run_id = uuid.uuid4().hex[:8]
    about = About(run_id, datetime.now(UTC).isoformat(), fingerprint(settings), to_plain(settings), versions())
    try:
        write_owner(output, run_id)
        output.write_json(ABOUT, asdict(about))
    except OSError as error:
        raise SettingsError(
            f"output.path={output.path}: cannot be written ({error}). Free some space, or name another folder."
        ) from error
    return run_id
