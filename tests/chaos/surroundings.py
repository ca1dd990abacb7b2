"""Faults around a job: a full disk, a changed input, a second driver, strange files and links."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys

from tests.chaos.lab import RUN_SECONDS, Lab
from tests.chaos.outcome import Outcome


def full_disk(lab: Lab) -> Outcome:
    """A disk that fills up in mid-run; with room again, the same command resumes the run."""
    lab.wanted()
    outcome, mount = Outcome("full disk, then room again", injected=1), lab.folder / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mount)]
    if shutil.which("mount") is None or subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode:
        return Outcome(outcome.fault, notes=["not run: no right to mount a small file system"])
    try:
        output = mount / "out"
        process = lab.start(output)
        lab.wait_for_file(output, process)
        ballast = mount / "ballast"
        with contextlib.suppress(OSError), open(ballast, "wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()
        lab.expect(outcome, process, 1, "No space left")
        ballast.unlink()
        lab.finish(lab.start(output))
        return lab.judge(outcome, output)
    finally:
        subprocess.run(["umount", str(mount)], check=False)


def changed_input(lab: Lab) -> Outcome:
    """Between two runs a line is put before the first row: exit 2. With the old file, the same command goes on."""
    lab.wanted()
    outcome, output = Outcome("input changed between runs"), lab.folder / "changed"
    table = lab.folder / "changed-input" / "in.jsonl"
    table.parent.mkdir()
    shutil.copy(lab.table, table)
    for _ in range(2):
        process = lab.start(output, table=table)
        if not lab.wait_for_file(output, process, lab.count_files(output)):
            break
        process.kill()
        process.communicate()
        table.write_text('{"question": "a new first row"}\n' + lab.table.read_text())
        lab.expect(outcome, lab.start(output, table=table), 2, "changed since the first run")
        shutil.copy(lab.table, table)
        outcome.injected += 1
    lab.finish(lab.start(output, table=table))
    return lab.judge(outcome, output)


def second_driver(lab: Lab) -> Outcome:
    """The same command starts again while a run lives: exit 2, and the first run goes on."""
    lab.wanted()
    outcome, output = Outcome("second driver"), lab.folder / "second"
    process = lab.start(output)
    while outcome.injected < lab.times and lab.wait_for_file(output, process, lab.count_files(output)):
        lab.expect(outcome, lab.start(output), 2, "another run")
        outcome.injected += 1
    lab.finish(process)
    return lab.judge(outcome, output)


def symlink_loop(lab: Lab) -> Outcome:
    """The input folder holds links to itself: every row is read once."""
    lab.wanted()
    outcome, folder = Outcome("symlink loop", injected=2), lab.folder / "loop"
    folder.mkdir()
    shutil.copy(lab.table, folder / "in.jsonl")
    (folder / "deeper").mkdir()
    (folder / "deeper" / "up").symlink_to(folder)
    (folder / "self").symlink_to(folder)
    output = lab.folder / "loop-out"
    lab.finish(lab.start(output, table=folder))
    return lab.judge(outcome, output)


def stray_files(lab: Lab) -> Outcome:
    """Other tools put hidden files into the output folder; the same command resumes the run."""
    lab.wanted()
    outcome, output = Outcome("stray .DS_Store and _SUCCESS"), lab.folder / "stray"
    process = lab.start(output)
    if lab.wait_for_file(output, process):
        process.kill()
    process.communicate(timeout=RUN_SECONDS)
    for name in (".DS_Store", "_SUCCESS", "._part-0.parquet"):
        (output / name).write_bytes(b"\0\0\0\1Bud1")
        outcome.injected += 1
    lab.finish(lab.start(output))
    status = [sys.executable, "-m", "jobs.status", f"output.path={output}"]
    found = subprocess.run(status, capture_output=True, text=True, check=False)
    if f"{lab.rows:,} of {lab.rows:,} rows" not in found.stdout:
        outcome.surprises.append(f"jobs.status says: {found.stdout}{found.stderr}")
    return lab.judge(outcome, output)


FAULTS = (full_disk, changed_input, second_driver, symlink_loop, stray_files)
