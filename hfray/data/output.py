"""The output folder: Parquet files that appear complete or not at all, and the run's own files in `_hfray/`."""

from __future__ import annotations

import json
import posixpath
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from hfray.data.paths import open_filesystem
from hfray.errors import SettingsError, SupersededError, WriteError

OWN = "_hfray"
ASIDE = f"{OWN}/writing"
SAMPLES_PER_PART = 5
ERRORS_KEPT = 20


@dataclass(slots=True)
class PartReport:
    """Counts and samples of the rows in one output file."""

    rows: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    finish_reasons: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    samples: list[dict[str, object]] = field(default_factory=list)

    @classmethod
    def of(cls, table: pa.Table) -> PartReport:
        """Count the rows of an output table."""
        report = cls(rows=table.num_rows)
        report.prompt_tokens = _total(table["num_prompt_tokens"])
        report.generated_tokens = _total(table["num_generated_tokens"])
        report.finish_reasons.update(
            {v["values"]: v["counts"] for v in table["finish_reason"].value_counts().to_pylist()}
        )
        good = table["error"].is_null()
        bad = table["error"].drop_null()
        report.failed = len(bad)
        report.errors.update({v["values"]: v["counts"] for v in bad.value_counts().to_pylist()[:1000]})
        columns = ["row_id", "prompt", "generated_text", "finish_reason"]
        report.samples = table.select(columns).filter(good).slice(0, SAMPLES_PER_PART).to_pylist()
        return report

    def to_json(self) -> dict[str, object]:
        """The report as plain values, with the most frequent errors only."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["finish_reasons"] = dict(self.finish_reasons)
        plain["errors"] = dict(self.errors.most_common(ERRORS_KEPT))
        return plain

    def add(self, other: PartReport) -> None:
        """Add the counts of another file."""
        self.rows += other.rows
        self.failed += other.failed
        self.prompt_tokens += other.prompt_tokens
        self.generated_tokens += other.generated_tokens
        self.finish_reasons.update(other.finish_reasons)
        self.errors.update(other.errors)
        self.samples = (self.samples + other.samples)[:SAMPLES_PER_PART]


def _total(column: pa.ChunkedArray) -> int:
    return int(column.drop_null().to_numpy().sum())


class OutputFolder:
    """An output folder, local or in the cloud. It is cheap to create and to send to another process."""

    def __init__(self, path: str) -> None:
        self.path = path

    @property
    def filesystem(self) -> fs.FileSystem:
        """The filesystem that contains the folder."""
        return open_filesystem(self.path, "output.path")[0]

    @property
    def is_local(self) -> bool:
        """Whether the folder is on a disk of this machine, or mounted there."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    @property
    def root(self) -> str:
        """The folder's path in its filesystem."""
        return open_filesystem(self.path, "output.path")[1].rstrip("/")

    def prepare(self) -> None:
        """Create the folder, check that it is writable, and delete the temporary files of a killed run."""
        filesystem, root = self.filesystem, self.root
        try:
            filesystem.create_dir(f"{root}/{OWN}", recursive=True)
            filesystem.delete_dir_contents(f"{root}/{ASIDE}", missing_dir_ok=True)
            filesystem.create_dir(f"{root}/{ASIDE}", recursive=True)
            self.write_text("probe", "")
            filesystem.delete_file(f"{root}/{OWN}/probe")
        except OSError as error:
            raise SettingsError(
                f"output.path={self.path}: is not writable ({error}). Use a writable folder."
            ) from error

    def clear(self) -> None:
        """Delete everything in the folder."""
        self.filesystem.delete_dir_contents(self.root, missing_dir_ok=True)

    def parts(self) -> list[str]:
        """Paths of the finished Parquet files. Raises SettingsError if the folder cannot be read."""
        return sorted(f.path for f in self._entries() if f.is_file and f.path.endswith(".parquet"))

    def foreign_files(self) -> list[str]:
        """Names of files and folders that hfray did not create. Raises SettingsError if the folder cannot be read."""
        names = [posixpath.basename(info.path.rstrip("/")) for info in self._entries()]
        return sorted(n for n in names if n != OWN and not (n.startswith("part-") and n.endswith(".parquet")))

    def _entries(self) -> list[fs.FileInfo]:
        try:
            return self.filesystem.get_file_info(fs.FileSelector(self.root, allow_not_found=True))
        except OSError as error:
            raise SettingsError(
                f"output.path={self.path}: cannot be read ({error}). Use a folder that you can read and write."
            ) from error

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The JSON object in `_hfray/name`; None if the file does not exist. Raises SettingsError if it is damaged."""
        try:
            with self.filesystem.open_input_stream(f"{self.root}/{OWN}/{name}") as file:
                content = json.loads(file.read())
            if not isinstance(content, dict):
                raise ValueError("it is not a JSON object")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise SettingsError(
                f"output.path={self.path}: {OWN}/{name} is damaged ({error}). "
                "Delete that file, or use another output folder."
            ) from error
        return content

    def write_json(self, name: str, content: Mapping[str, object]) -> None:
        """Write `_hfray/name`, completely or not at all."""
        self.write_text(name, json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")

    def write_text(self, name: str, content: str) -> None:
        """Write `_hfray/name`, completely or not at all."""
        self.put(f"{OWN}/{name}", content.encode())

    def write_part(self, name: str, blocks: list[pa.Table], run_id: str) -> PartReport:
        """Write blocks as the file `name`.

        Raises:
            SupersededError: another run owns the folder now.
            WriteError: the disk is full, the folder is gone, ...; no file with that name is left behind.
        """
        table = pa.concat_tables(blocks)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        try:
            owner = self.read_json("owner.json") or {}
            if owner.get("run_id") != run_id:
                raise SupersededError(
                    f"output.path={self.path}: another run ({owner.get('run_id')}) writes to this folder now. This run stops."
                )
            self.put(name, sink.getvalue())
        except OSError as error:
            raise WriteError(f"output.path={self.path}: {name} cannot be written: {error}") from error
        return PartReport.of(table)

    def drop_part(self, name: str) -> None:
        """Delete the file `name` if it exists."""
        if self.filesystem.get_file_info(f"{self.root}/{name}").is_file:
            self.filesystem.delete_file(f"{self.root}/{name}")

    def put(self, relative: str, content: bytes | pa.Buffer) -> None:
        """Write a file atomically: by a rename on a disk, as one object in object storage."""
        filesystem, target = self.filesystem, f"{self.root}/{relative}"
        if not self.is_local:
            with filesystem.open_output_stream(target) as stream:
                stream.write(content)
            return
        aside = f"{self.root}/{OWN}/writing/{posixpath.basename(relative)}"
        filesystem.create_dir(posixpath.dirname(aside), recursive=True)
        try:
            with filesystem.open_output_stream(aside) as stream:
                stream.write(content)
            filesystem.move(aside, target)
        except OSError:
            if filesystem.get_file_info(aside).is_file:
                filesystem.delete_file(aside)
            raise
