"""The output folder: Parquet files that appear whole or not at all, and the run's own files under `_hfray/`."""

from __future__ import annotations

import json
import posixpath
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
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
    """What went into one output file."""

    rows: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    finish_reasons: Counter = field(default_factory=Counter)
    errors: Counter = field(default_factory=Counter)
    samples: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, table: pa.Table) -> PartReport:
        """Count the rows of an output table."""
        report = cls(rows=table.num_rows)
        report.prompt_tokens = pc.sum(table["num_prompt_tokens"]).as_py() or 0
        report.generated_tokens = pc.sum(table["num_generated_tokens"]).as_py() or 0
        report.finish_reasons.update(
            {v["values"]: v["counts"] for v in table["finish_reason"].value_counts().to_pylist()}
        )
        good = pc.is_null(table["error"])
        bad = table["error"].filter(pc.invert(good))
        report.failed = len(bad)
        report.errors.update({v["values"]: v["counts"] for v in bad.value_counts().to_pylist()[:1000]})
        columns = ["row_id", "prompt", "generated_text", "finish_reason"]
        report.samples = table.select(columns).filter(good).slice(0, SAMPLES_PER_PART).to_pylist()
        return report

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the most frequent errors only."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["finish_reasons"] = dict(self.finish_reasons)
        plain["errors"] = dict(self.errors.most_common(ERRORS_KEPT))
        return plain

    def add(self, other: PartReport) -> None:
        """Count another part's rows in."""
        self.rows += other.rows
        self.failed += other.failed
        self.prompt_tokens += other.prompt_tokens
        self.generated_tokens += other.generated_tokens
        self.finish_reasons.update(other.finish_reasons)
        self.errors.update(other.errors)
        self.samples = (self.samples + other.samples)[:SAMPLES_PER_PART]


class OutputFolder:
    """An output folder, local or in the cloud. Cheap to make and to send to another process."""

    def __init__(self, path: str) -> None:
        self.path = path

    @property
    def filesystem(self) -> fs.FileSystem:
        return open_filesystem(self.path, "output.path")[0]

    @property
    def is_local(self) -> bool:
        """Whether the folder is on this machine's own disks (or mounted there)."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    @property
    def root(self) -> str:
        return open_filesystem(self.path, "output.path")[1].rstrip("/")

    def prepare(self) -> None:
        """Make the folder, see that it can be written, and clear away what a killed run left aside."""
        filesystem, root = self.filesystem, self.root
        try:
            filesystem.create_dir(f"{root}/{OWN}", recursive=True)
            filesystem.delete_dir_contents(f"{root}/{ASIDE}", missing_dir_ok=True)
            filesystem.create_dir(f"{root}/{ASIDE}", recursive=True)
            self.write_text("probe", "")
            filesystem.delete_file(f"{root}/{OWN}/probe")
        except OSError as error:
            raise SettingsError(
                f"output.path={self.path}: cannot be written ({error}). Name a folder that can be."
            ) from error

    def clear(self) -> None:
        """Delete all that the folder holds."""
        self.filesystem.delete_dir_contents(self.root, missing_dir_ok=True)

    def parts(self) -> list[str]:
        """Paths of the finished Parquet files."""
        selector = fs.FileSelector(self.root, allow_not_found=True)
        files = self.filesystem.get_file_info(selector)
        return sorted(f.path for f in files if f.is_file and f.path.endswith(".parquet"))

    def foreign_files(self) -> list[str]:
        """Names of things in the folder that no run of ours made."""
        infos = self.filesystem.get_file_info(fs.FileSelector(self.root, allow_not_found=True))
        names = [posixpath.basename(info.path.rstrip("/")) for info in infos]
        return sorted(n for n in names if n != OWN and not (n.startswith("part-") and n.endswith(".parquet")))

    def read_json(self, name: str) -> dict[str, Any] | None:
        """`_hfray/name`, or None where there is none."""
        try:
            with self.filesystem.open_input_stream(f"{self.root}/{OWN}/{name}") as file:
                return json.loads(file.read())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write `_hfray/name`, whole or not at all."""
        self.write_text(name, json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")

    def write_text(self, name: str, content: str) -> None:
        """Write `_hfray/name`, whole or not at all."""
        self._put(f"{OWN}/{name}", content.encode())

    def write_part(self, name: str, blocks: list[pa.Table], run_id: str) -> PartReport:
        """Write blocks as the file `name`, unless another run has taken the folder over.

        Raises:
            WriteError: the disk is full, the folder is gone, ...; no file of that name is left.
        """
        table = pa.concat_tables(blocks)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        try:
            owner = self.read_json("owner.json") or {}
            if owner.get("run_id") != run_id:
                raise SupersededError(
                    f"output.path={self.path}: another run ({owner.get('run_id')}) writes there now; this one stops."
                )
            self._put(name, sink.getvalue())
        except OSError as error:
            raise WriteError(f"output.path={self.path}: {name} cannot be written: {error}") from error
        return PartReport.of(table)

    def drop_part(self, name: str) -> None:
        """Delete the file `name`, if it is there."""
        if self.filesystem.get_file_info(f"{self.root}/{name}").is_file:
            self.filesystem.delete_file(f"{self.root}/{name}")

    def drop_failed_rows(self, part: str) -> int:
        """Rewrite a finished file without its failed rows, for these to be done again; returns how many."""
        table = pq.read_table(part, filesystem=self.filesystem, partitioning=None)
        good = table.filter(pc.is_null(table["error"]))
        if good.num_rows < table.num_rows:
            if good.num_rows:
                sink = pa.BufferOutputStream()
                pq.write_table(good, sink, compression="zstd")
                self._put(posixpath.basename(part), sink.getvalue())
            else:
                self.filesystem.delete_file(part)
        return table.num_rows - good.num_rows

    def _put(self, relative: str, content: bytes | pa.Buffer) -> None:
        """Put a file in place at once: renamed on a disk, one object on object storage."""
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
