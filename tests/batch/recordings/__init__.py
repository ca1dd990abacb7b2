"""Snapshots of real jobs, one file a job, for the tests of the time left.

python -m tests.batch.recordings NAME key=value ...

runs the job that the settings describe and writes what its estimator was given, one snapshot a second, to NAME.json
beside this file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hfray.runs.buckets import empty_buckets
from hfray.runs.snapshot import Snapshot, Totals
from hfray.runs.timeleft import Estimate, TimeLeft

FOLDER = Path(__file__).parent
COUNTERS = ("rows", "failed_rows", "prompt_tokens", "generated_tokens", "prefix_tokens")
NUMBERS = ("running", "capacity", "workers_ready", "max_new_tokens")
LENGTHS = ("running_lengths", "answer_lengths")


def read_recording(name: str) -> Iterator[tuple[float, Snapshot, int]]:
    """(seconds, snapshot, rows without an answer) of a recorded job, in order."""
    for moment in json.loads((FOLDER / f"{name}.json").read_text())["snapshots"]:
        snapshot = Snapshot(
            Totals(**{key: moment.get(key, 0) for key in COUNTERS}), **{key: moment[key] for key in NUMBERS}
        )
        for key in LENGTHS:
            counts = empty_buckets()
            for bucket, count in moment[key]:
                counts[bucket] = count
            setattr(snapshot, key, counts)
        yield moment["seconds"], snapshot, moment["remaining"]


class RecordingTimeLeft(TimeLeft):
    """Keeps what it is given."""

    moments: list[dict[str, Any]] = []  # noqa: RUF012  of the one job of this process

    def update(self, now: float, snapshot: Snapshot, remaining: int) -> Estimate | None:
        moments = RecordingTimeLeft.moments
        if snapshot.workers_ready and (not moments or now - moments[-1]["seconds"] >= 1 or remaining == 0):
            moment: dict[str, Any] = {"seconds": round(now, 2), "remaining": remaining}
            moment |= {key: getattr(snapshot.totals, key) for key in COUNTERS}
            moment |= {key: getattr(snapshot, key) for key in NUMBERS}
            for key in LENGTHS:
                moment[key] = [(bucket, count) for bucket, count in enumerate(getattr(snapshot, key)) if count]
            moments.append(moment)
        return super().update(now, snapshot, remaining)


def main(name: str, *overrides: str) -> None:
    """Run the job and write its recording."""
    import hfray.batch.watch
    from hfray.batch.job import run_batch
    from hfray.config.compose import load_settings

    hfray.batch.watch.TimeLeft = RecordingTimeLeft
    run_batch(load_settings(list(overrides)))
    settings = [item for item in overrides if "path=" not in item]
    lines = ",\n".join(json.dumps(moment, separators=(",", ":")) for moment in RecordingTimeLeft.moments)
    (FOLDER / f"{name}.json").write_text(f'{{"settings": {json.dumps(settings)}, "snapshots": [\n{lines}\n]}}\n')
