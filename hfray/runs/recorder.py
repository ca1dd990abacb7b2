"""Keeps the record of the current run up to date on disk: a killed run leaves what it wrote while it lived."""

from __future__ import annotations

import dataclasses
import sys
import threading
import time

from hfray.data.output import OutputFolder
from hfray.runs.liveness import ProcessMark
from hfray.runs.record import RunRecord, Sample
from hfray.runs.snapshot import Snapshot
from hfray.runs.summary import RunState, Summary
from hfray.runs.timeleft import Estimate

BEAT_SECONDS = 5.0  # between two writes of the record
MAX_SAMPLES = 400  # when there are more, every second sample is dropped


class RunRecorder:
    """A context that writes the run's record every few seconds, and a last time when the run ends.

    Args:
        summary: the run's summary. Its owner calls `update` or `enter_stage` after changing it.
    """

    def __init__(self, output: OutputFolder, run_id: str, summary: Summary) -> None:
        self._output, self._summary = output, summary
        self.run_id, self._name = run_id, f"run-{run_id}.json"
        process = ProcessMark.of_this_process()
        self._record = RunRecord(
            run_id=run_id,
            host=process.host,
            pid=process.pid,
            process_started=process.began,
            process_birth=process.birth,
            started=summary.timeline["command"],
        )
        self._interval = 0.0
        self._content: dict[str, object] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="run-record", daemon=True)

    def __enter__(self) -> RunRecorder:
        self._settle(RunState.RUNNING, "")
        self._write()
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        status, message = self._summary.status, self._summary.message
        if error is not None:
            status, message = RunState.FAILED, str(error) or type(error).__name__
        self._settle(status, message)
        self._write()

    def enter_stage(self, stage: str) -> None:
        """Record what the run is doing now: "preparing the model", "generating", ..."""
        self._record.stage = stage
        self._settle(RunState.RUNNING, "")

    def update(self, snapshot: Snapshot, left: Estimate | None = None) -> None:
        """Record the Monitor's latest snapshot, and the time left."""
        self._record.snapshot = snapshot
        self._record.left, self._record.estimated = left, time.time()
        self._record.stage = "generating" if snapshot.workers_ready else "starting workers"
        self._sample(snapshot)
        self._settle(RunState.RUNNING, "")

    def _sample(self, snapshot: Snapshot) -> None:
        now, samples, totals = time.time(), self._record.samples, snapshot.totals
        if samples and now - samples[-1].time < self._interval:
            return
        sample = Sample(
            time=round(now, 2),
            rows=totals.rows,
            failed_rows=totals.failed_rows,
            prompt_tokens=totals.prompt_tokens,
            generated_tokens=totals.generated_tokens,
            running=snapshot.running,
            capacity=snapshot.capacity,
            workers_ready=snapshot.workers_ready,
            pools={name: (pool.prompt_tokens, pool.generated_tokens) for name, pool in snapshot.pools.items()},
        )
        samples.append(sample)
        if len(samples) > MAX_SAMPLES:
            self._record.samples = samples = samples[::2]
            self._interval = 2 * (samples[-1].time - samples[0].time) / MAX_SAMPLES

    def _settle(self, status: str, message: str) -> None:
        """Make the content. Runs on the caller's thread, the only thread that changes the summary."""
        self._record.summary = dataclasses.replace(self._summary, status=status, message=message)
        self._content = self._record.to_json()

    def _write(self) -> None:
        try:
            self._output.write_json(self._name, self._content | {"updated": time.time()})
        except Exception as error:  # the record is for people: a failed write must not end the run
            print(f"hfray: cannot write {self._name}: {error}", file=sys.stderr, flush=True)

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            self._write()
