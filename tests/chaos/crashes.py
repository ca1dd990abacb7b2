"""Faults of processes: workers, drivers and nodes that are killed, engines that die or hang, and signals."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
import uuid
from collections.abc import Sequence

import psutil

from tests.chaos.lab import SLOW, Lab
from tests.chaos.outcome import Outcome
from tests.processes import marked, named

REAL = (
    "model.precision=exact",  # other batches round otherwise; in bf16 that changes texts
    "generation.max_new_tokens=24",
    "input.limit=300",
    "output.flush_seconds=2",
    "workers.rows_per_block=16",
)
ENDING_SECONDS = 20  # Ray's helper processes end themselves soon after the others
STOPS = {
    "Ctrl-C": [signal.SIGINT],
    "Ctrl-C twice": [signal.SIGINT, signal.SIGINT],
    "SIGTERM": [signal.SIGTERM],
    "SIGHUP": [signal.SIGHUP],
}


def kill_workers(lab: Lab, settings: Sequence[str] = SLOW, times: int | None = None) -> Outcome:
    """kill -9 of one worker after another in one run."""
    lab.wanted(settings)
    outcome, output = Outcome("kill -9 a worker"), lab.folder / f"workers-{len(settings)}"
    process = lab.start(output, settings)
    while process.poll() is None and outcome.injected < (times or lab.times):
        time.sleep(lab.random.uniform(0.5, 2.5))
        workers = named(process.pid, "BatchWorker") if process.poll() is None else []
        if workers and lab.count_files(output):
            lab.random.choice(workers).kill()
            outcome.injected += 1
    lab.finish(process)
    return lab.judge(outcome, output, settings)


def kill_drivers(lab: Lab, settings: Sequence[str] = SLOW, times: int | None = None) -> Outcome:
    """kill -9 of the driver, each time followed by the same command."""
    lab.wanted(settings)
    outcome, output = Outcome("kill -9 the driver"), lab.folder / f"drivers-{len(settings)}"
    while outcome.injected < (times or lab.times):
        process = lab.start(output, settings)
        lab.wait_for_file(output, process, lab.count_files(output))
        time.sleep(lab.random.uniform(0.0, 1.5))
        if process.poll() is not None:
            outcome.notes.append(f"the table was done after {outcome.injected}")
            break
        process.kill()
        process.communicate()
        outcome.injected += 1
    lab.finish(lab.start(output, settings))
    return lab.judge(outcome, output, settings)


def kill_everything(lab: Lab) -> Outcome:
    """kill -9 of the driver and all of its processes at once."""
    lab.wanted()
    outcome, output = Outcome("kill -9 everything at once"), lab.folder / "everything"
    for _ in range(2):
        process = lab.start(output)
        lab.wait_for_file(output, process, lab.count_files(output))
        for child in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.communicate()
        outcome.injected += 1
    lab.finish(lab.start(output))
    return lab.judge(outcome, output)


def remove_nodes(lab: Lab, times: int = 3) -> Outcome:
    """kill -9 of the raylet of a node with a worker, in a cluster of three nodes on this machine, several times."""
    from ray.cluster_utils import Cluster

    lab.wanted()
    outcome, output = Outcome("kill -9 a node's raylet"), lab.folder / "nodes"
    memory = 100 << 20
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": memory})

    def add_node() -> object:
        return cluster.add_node(num_cpus=1, resources={"pool": 1}, object_store_memory=memory)

    try:
        nodes = [add_node() for _ in range(2)]
        cluster.wait_for_nodes()
        process = lab.start(output, [*SLOW, f"ray.address={cluster.address}", "workers.resources.pool=0.5"])
        while outcome.injected < times and lab.wait_for_file(output, process, lab.count_files(output)):
            nodes.pop(0).all_processes["raylet"][0].process.kill()  # type: ignore[attr-defined]
            outcome.injected += 1
            nodes.append(add_node())
        lab.finish(process)
    finally:
        cluster.shutdown()
    return lab.judge(outcome, output)


def poison(lab: Lab) -> Outcome:
    """Rows that end their worker's process."""
    lab.wanted()
    planted = {"in.jsonl:77", "in.jsonl:333"}
    outcome, output = Outcome("rows that kill their worker", injected=len(planted)), lab.folder / "poison"
    lab.finish(lab.start(output, [*SLOW, r"backend.die_on=row number (77|333)\b"]))
    return lab.judge(outcome, output, planted=planted)


def hang(lab: Lab) -> Outcome:
    """A row that hangs the engine."""
    lab.wanted()
    outcome, output = Outcome("hung engine", injected=1), lab.folder / "hang"
    lab.finish(lab.start(output, [*SLOW, r"backend.hang_on=row number 123\b", "workers.step_timeout=3"]))
    return lab.judge(outcome, output, planted={"in.jsonl:123"})


def stop(lab: Lab) -> Outcome:
    """Signals at random moments from the start of Ray on, to the driver alone or to its process group.

    Each time the job must end with 130 and leave no process; then the same command starts again.
    """
    lab.wanted()
    outcome, output = Outcome("Ctrl-C, Ctrl-C twice, SIGTERM, SIGHUP"), lab.folder / "signals"
    for name, signals in itertools.islice(itertools.cycle(STOPS.items()), max(lab.times, len(STOPS))):
        mark = uuid.uuid4().hex
        process = lab.start(output, mark=mark)
        while process.poll() is None and not named(process.pid, "gcs_server"):
            time.sleep(0.02)
        time.sleep(lab.random.uniform(0.0, 12.0))
        if process.poll() is not None:
            lab.finish(process)
            outcome.notes.append(f"the table was done after {outcome.injected}")
            break
        send = lab.random.choice([os.kill, os.killpg])
        for number in signals:
            with contextlib.suppress(ProcessLookupError):
                send(process.pid, number)
            time.sleep(0.3)
        outcome.injected += 1
        lab.expect(outcome, process, 130)
        _check_no_process_left(outcome, name, mark)
    lab.finish(lab.start(output))
    return lab.judge(outcome, output)


def _check_no_process_left(outcome: Outcome, name: str, mark: str) -> None:
    deadline = time.monotonic() + ENDING_SECONDS
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    if left:
        outcome.surprises.append(f"{name} left {len(left)} processes")
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def real_workers(lab: Lab) -> Outcome:
    """kill -9 of a worker with the real 135M model."""
    outcome = kill_workers(lab, REAL, times=1)
    outcome.fault += ", SmolLM2-135M"
    return outcome


def real_drivers(lab: Lab) -> Outcome:
    """kill -9 of the driver with the real 135M model."""
    outcome = kill_drivers(lab, REAL, times=2)
    outcome.fault += ", SmolLM2-135M"
    return outcome


FAULTS = (kill_workers, kill_drivers, kill_everything, remove_nodes, poison, hang, stop)
REAL_FAULTS = (real_workers, real_drivers)
