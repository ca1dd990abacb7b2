"""The output folder: Parquet files that appear complete or not at all, and the run's own files in `_hfray/`."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import posixpath
import re
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from hfray.data.partreport import PartReport
from hfray.data.paths import open_filesystem
from hfray.errors import SettingsError, SupersededError, WriteError

OWN = "_hfray"
ASIDE = f"{OWN}/aside"  # where files of `_hfray/` are written before they are renamed
WRITING = "writing-"  # with a run's id: where its Parquet files are written before they are renamed
PART = re.compile(r"part-(?P<run_id>\w+)-\d+\.parquet")
DAMAGED_REMEDY = "Delete that file, or use another output folder"
HIDDEN = (".", "_")


class OutputFolder:
    """An output folder, local or in the cloud. It is cheap to create and to send to another process."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __getstate__(self) -> dict[str, str]:
        return {"path": self.path}  # a filesystem may hold credentials; each process opens its own

    @functools.cached_property
    def _opened(self) -> tuple[fs.FileSystem, str]:
        return open_filesystem(self.path, "output.path")

    @property
    def filesystem(self) -> fs.FileSystem:
        """The filesystem that contains the folder."""
        return self._opened[0]

    @property
    def is_local(self) -> bool:
        """Whether the folder is on a disk of this machine, or mounted there."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    @property
    def root(self) -> str:
        """The folder's path in its filesystem."""
        return self._opened[1].rstrip("/")

    def prepare(self) -> None:
        """Create the folder, and check that it is writable. Raises SettingsError."""
        filesystem, root = self.filesystem, self.root
        try:
            filesystem.create_dir(f"{root}/{ASIDE}", recursive=True)
            self.write_text("probe", "")
            filesystem.delete_file(f"{root}/{OWN}/probe")
        except OSError as error:
            raise SettingsError(
                f"output.path={self.path}: is not writable ({error}). Use a writable folder."
            ) from error

    def clear(self) -> None:
        """Delete every file that hfray made. Hidden files of other tools stay."""
        for part in self.parts():
            self.filesystem.delete_file(part)
        self.filesystem.delete_dir_contents(f"{self.root}/{OWN}", missing_dir_ok=True)

    def claim(self, run_id: str, owner: dict[str, object]) -> None:
        """Make a run the owner of the folder, and stop all writes of other runs.

        On a disk, every run writes its files into its own folder and then renames them. Moving that folder away fences the run: a write
        in progress fails, even if the run has checked the owner already. On object storage a late write of a
        former owner can appear; `drop_unaccepted` deletes it.
        """
        former = (self.read_json("owner.json") or {}).get("run_id")
        self.drop_unaccepted(str(former))
        if self.is_local:
            self.filesystem.create_dir(f"{self.root}/{OWN}/{WRITING}{run_id}")
        self.write_json("owner.json", owner)
        if self.is_local:
            self._fence_others(run_id)
        else:
            names = [posixpath.basename(part) for part in self.parts()]
            self.write_json(f"accepted-{run_id}.json", {"parts": names})

    def release(self, run_id: str) -> None:
        """Delete the files that the run `run_id` needed only while it ran."""
        self.drop_unaccepted(run_id)
        self.delete_own(f"beat-{run_id}.json")
        if self.is_local:
            self.filesystem.delete_dir_contents(f"{self.root}/{OWN}/{WRITING}{run_id}", missing_dir_ok=True)

    def drop_unaccepted(self, run_id: str) -> None:
        """Delete files that another run wrote after the run `run_id` had become the owner."""
        name = f"accepted-{run_id}.json"
        accepted = self.read_json(name)
        if accepted is None:
            return
        names = accepted.get("parts")
        if not isinstance(names, list):
            raise self.damaged(name, "no list `parts`")
        for part in self.parts():
            match = PART.fullmatch(posixpath.basename(part))
            if match and match["run_id"] != run_id and match[0] not in names:
                self.filesystem.delete_file(part)

    def _fence_others(self, run_id: str) -> None:
        root = f"{self.root}/{OWN}"
        for info in self.filesystem.get_file_info(fs.FileSelector(root)):
            if info.base_name.startswith(WRITING) and info.base_name != f"{WRITING}{run_id}":
                fenced = f"{root}/fenced-{info.base_name.removeprefix(WRITING)}"
                self.filesystem.move(info.path, fenced)
                self.filesystem.delete_dir(fenced)
        self.filesystem.delete_dir_contents(f"{root}/writing", missing_dir_ok=True)  # of earlier versions

    def parts(self) -> list[str]:
        """Paths of the finished Parquet files. Raises SettingsError if the folder cannot be read."""
        files = [info for info in self._entries() if info.is_file and not info.base_name.startswith(HIDDEN)]
        return sorted(info.path for info in files if info.path.endswith(".parquet"))

    def foreign_files(self) -> list[str]:
        """Names of files and folders that hfray did not create. Raises SettingsError if the folder cannot be read.

        Names that begin with "." or "_" do not count (`.DS_Store`, `_SUCCESS`): readers of Parquet folders skip them.
        """
        names = [posixpath.basename(info.path.rstrip("/")) for info in self._entries()]
        return sorted(
            n for n in names if not n.startswith(HIDDEN) and not (n.startswith("part-") and n.endswith(".parquet"))
        )

    def _entries(self) -> list[fs.FileInfo]:
        try:
            return self.filesystem.get_file_info(fs.FileSelector(self.root, allow_not_found=True))
        except OSError as error:
            raise SettingsError(
                f"output.path={self.path}: cannot be read ({error}). Use a folder that you can read and write."
            ) from error

    def read_json(self, name: str, remedy: str = DAMAGED_REMEDY, key: str = "output.path") -> dict[str, object] | None:
        """The JSON object in `_hfray/name`; None if the file does not exist.

        Args:
            remedy: what to do about a damaged file, for the message.
            key: the setting that names the folder, for the message.

        Raises:
            SettingsError: the file cannot be read, or is not a JSON object.
        """
        try:
            with self.filesystem.open_input_stream(f"{self.root}/{OWN}/{name}") as file:
                content = json.loads(file.read())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise self.damaged(name, error, remedy, key) from error
        if not isinstance(content, dict):
            raise self.damaged(name, "not a JSON object", remedy, key)
        return content

    def damaged(
        self, name: str, reason: object, remedy: str = DAMAGED_REMEDY, key: str = "output.path"
    ) -> SettingsError:
        """The error that says that `_hfray/name` cannot be used."""
        return SettingsError(f"{key}={self.path}: {OWN}/{name} cannot be read or is damaged ({reason}). {remedy}.")

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
            self._check_owner(run_id)
            self.put(name, sink.getvalue(), f"{OWN}/{WRITING}{run_id}")
        except FileNotFoundError as error:
            raise SupersededError(
                f"output.path={self.path}: another run took this folder over, or somebody deleted it. This run stops."
            ) from error
        except OSError as error:
            raise WriteError(f"output.path={self.path}: {name} cannot be written: {error}") from error
        return PartReport.of(table)

    def _check_owner(self, run_id: str) -> None:
        owner = self.read_json("owner.json")
        if owner is None:
            raise SupersededError(
                f"output.path={self.path}: the folder was deleted during the run. This run stops; start it again."
            )
        if owner.get("run_id") != run_id:
            raise SupersededError(
                f"output.path={self.path}: another run ({owner.get('run_id')}) took this folder over. This run stops."
            )

    def delete_own(self, name: str) -> None:
        """Delete `_hfray/name`, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_file(f"{self.root}/{OWN}/{name}")

    def drop_part(self, name: str) -> None:
        """Delete the file `name` if it exists."""
        if self.filesystem.get_file_info(f"{self.root}/{name}").is_file:
            self.filesystem.delete_file(f"{self.root}/{name}")

    def put(self, relative: str, content: bytes | pa.Buffer, aside: str = ASIDE) -> None:
        """Write a file atomically: flushed and renamed on a disk, one object in object storage."""
        target = f"{self.root}/{relative}"
        if not self.is_local:
            with self.filesystem.open_output_stream(target) as stream:
                stream.write(content)
            return
        written = f"{self.root}/{aside}/{posixpath.basename(relative)}"
        if aside == ASIDE:  # the folder of a run's Parquet files must stay away once it is fenced
            os.makedirs(f"{self.root}/{ASIDE}", exist_ok=True)
        try:
            with open(written, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # a power cut after the rename must not leave an empty file
            os.rename(written, target)
            _sync_folder(posixpath.dirname(target))
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(written)
            raise


def _sync_folder(path: str) -> None:
    """Flush the folder's own entries, so that a renamed file is there after a power cut."""
    with contextlib.suppress(OSError):  # some file systems cannot
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
