"""Before a run: everything that can be found wrong before anything is started, and the folder made this run's own."""

from __future__ import annotations

import os
import socket
import uuid
from datetime import UTC, datetime
from pathlib import Path

import psutil

from hfray.config.batch import BatchSettings
from hfray.config.secrets import to_plain
from hfray.data import readers
from hfray.data.done_rows import DoneRows
from hfray.data.output import OutputFolder
from hfray.data.records import output_schema
from hfray.data.scan import scan
from hfray.data.table import Table
from hfray.errors import SettingsError
from hfray.runs.fingerprint import check_fingerprint, fingerprint, versions
from hfray.runs.liveness import process_lives
from hfray.urls import absolute


def check(settings: BatchSettings) -> Table:
    """Everything that can be found wrong before anything is started; returns the table. Raises SettingsError."""
    from hfray.cluster.nodes import check_submitted_paths
    from hfray.inference.prompts import RecordPrompt

    check_submitted_paths(settings)
    try:
        prompt = RecordPrompt(settings.prompt)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    for number, pool in enumerate(settings.pools.values()):
        source, key = (
            pool.model.source,
            "model.source" if len(settings.pools) == 1 else f"workers[{number}].model.source",
        )
        if source.startswith((".", "/", "~")) and not Path(source).expanduser().exists():
            raise SettingsError(f"{key}={source}: there is no such file or folder. Check the path.")
    table = scan(settings.input)
    for name in prompt.variables:
        if name not in table.schema.names:
            raise SettingsError(
                f"prompt.template={settings.prompt.template!r}: {{{name}}} is no column of the input. "
                f"Columns: {', '.join(table.schema.names)}. Rename it in the template, or add the column."
            )
    return table


def check_output(settings: BatchSettings, output: OutputFolder, table: Table) -> None:
    """Whether the folder may be written to, or gone on with. Raises SettingsError."""
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
            f"output.path={output.path}: holds output already. Name another folder, or set output.resume=true to go on, "
            "or output.overwrite=true to start over."
        )
    run = output.read_json("run.json")
    if run is None:
        raise SettingsError(
            f"output.path={output.path}: holds Parquet files, and no _hfray/run.json that says how they were made. "
            "Name another folder, or start over with output.overwrite=true."
        )
    check_fingerprint(fingerprint(settings), run["fingerprint"], output.path)
    _check_schema(output, parts[0], table)


def _check_schema(output: OutputFolder, part: str, table: Table) -> None:
    import pyarrow.parquet as pq

    there = pq.read_schema(part, filesystem=output.filesystem).remove_metadata()
    mine = output_schema(table.schema)
    if not there.equals(mine):
        differ = [f.name for f in mine if f.name not in there.names or there.field(f.name).type != f.type]
        differ += [name for name in there.names if name not in mine.names]
        raise SettingsError(
            f"output.path={output.path}: the columns there differ from this input's ({', '.join(differ)}). "
            "Name another folder, or give the input as it was."
        )


def take_over(settings: BatchSettings, output: OutputFolder) -> str:
    """Make the folder this run's own; returns the run's id. Raises SettingsError while another run is alive here."""
    owner = output.read_json("owner.json")
    if owner and _is_alive(owner):
        raise SettingsError(
            f"output.path={output.path}: another run (process {owner['pid']}) is writing there. "
            "Wait for its end, stop it, or name another folder."
        )
    output.prepare()
    if settings.output.overwrite:
        output.clear()
        output.prepare()
    run_id = uuid.uuid4().hex[:8]
    began = psutil.Process().create_time()
    output.write_json(
        "owner.json", {"run_id": run_id, "host": socket.gethostname(), "pid": os.getpid(), "began": began}
    )
    output.write_json(
        "run.json",
        {
            "run_id": run_id,
            "started": datetime.now(UTC).isoformat(),
            "fingerprint": fingerprint(settings),
            "settings": to_plain(settings),
            "versions": versions(),
        },
    )
    return run_id


def done_rows(settings: BatchSettings, output: OutputFolder) -> DoneRows:
    """The finished rows; with output.retry_errors, failed ones are dropped from the files first."""
    if settings.output.retry_errors:
        for part in output.parts():
            output.drop_failed_rows(part)
    return DoneRows.read(output, by_position=settings.input.id_column is None)


def any_pending(table: Table, done: DoneRows) -> bool:
    """Whether any row of the table is not done; reads the table until it finds one."""
    blocks = (block for piece in table.slices for block in readers.read(table, piece, 65536))
    return any(done.drop_from(block).num_rows for block in blocks)


def output_folder(settings: BatchSettings) -> OutputFolder:
    """The folder of output.path, by its absolute path."""
    path = settings.output.path
    return OutputFolder(absolute(path))


def _is_alive(owner: dict) -> bool:
    """Whether the run that owns a folder is a process of this machine that still lives; pids are used again."""
    if owner["host"] != socket.gethostname() or owner["pid"] == os.getpid():
        return False
    return process_lives(owner["pid"], owner.get("began", 0.0))
