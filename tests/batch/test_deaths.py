"""Processes that die, hang or are interrupted in the middle of a job: every row still has one output row."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import time

import pytest

from hfray.batch.dataset import Block, BlockStream
from hfray.batch.dispatcher import Dispatcher
from hfray.batch.monitor import Monitor
from hfray.cluster.pools import pools_of
from hfray.config.batch import InputSettings
from hfray.data import readers
from hfray.data.scan import scan
from tests.batch.running import QUICK, check_rows, fake, rows_of, run_fake, run_pools, table, write
from tests.conftest import batch_settings
from tests.processes import WAIT_SECONDS, Hold, wait_for_file

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("shared_ray")]


def test_a_killed_worker_costs_nothing(tmp_path):
    path, out = write(tmp_path / "in.jsonl", [{"question": f"row {i}"} for i in range(160)]), tmp_path / "out"

    def kill(pids: list[int]) -> None:
        wait_for_file(out)
        os.kill(pids[0], signal.SIGKILL)

    hold = Hold(tmp_path, 24)
    with hold.acting(1, kill):
        summary = run_fake(path, out, "backend.batch_size=8", "workers.rows_per_block=8", *hold.overrides)
    rows = rows_of(out)
    assert summary.engine.workers_replaced == 1
    assert len({row["row_id"] for row in rows}) == len(rows) == 160


@pytest.mark.parametrize(("poison", "deaths"), [({20}, 4), ({18, 30}, 6)])
def test_rows_that_kill_their_worker_become_error_rows(poison, deaths, tmp_path):
    """Also two rows in one block: both are found, and no other row of the block."""
    path = write(tmp_path / "in.jsonl", [{"question": "poison" if i in poison else f"row {i}"} for i in range(48)])
    summary = run_fake(path, tmp_path / "out", "backend.die_on=poison", "workers.rows_per_block=16")
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 48
    assert {row["row_id"] for row in rows if row["error"]} == {f"in.jsonl:{i}" for i in poison}
    assert [row["question"] for row in rows if row["error"]] == ["poison"] * len(poison)
    assert "ended its worker's process" in next(row["error"] for row in rows if row["error"])
    assert summary.engine.workers_replaced == deaths


def test_a_hung_engine_is_replaced_and_its_row_isolated(tmp_path):
    """An engine that hangs while it holds Python's lock also ends its process: see test_watchdog.py."""
    path = write(tmp_path / "in.jsonl", [{"question": "hang" if i == 3 else f"row {i}"} for i in range(24)])
    run_fake(path, tmp_path / "out", "backend.hang_on=hang", "workers.step_timeout=1", "errors.max_fraction=0.1")
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 24
    assert [row["question"] for row in rows if row["error"]] == ["hang"]


def test_a_killed_worker_of_one_pool_costs_nothing(tmp_path):
    def kill(pids: list[int]) -> None:
        wait_for_file(tmp_path / "out")
        os.kill(pids[0], signal.SIGKILL)

    hold = Hold(tmp_path, 32)
    with hold.acting(2, kill):
        summary = run_pools(table(tmp_path, 400), tmp_path / "out", fake("a", 0.0, hold), fake("b", 0.0, hold))
    check_rows(tmp_path / "out", 400)
    assert summary.engine.workers_replaced == 1
    assert sum(pool.deaths for pool in summary.engine.pools.values()) == 1


def test_a_worker_that_died_idle_is_given_rows_again(tmp_path):
    """No call shows the death: the driver must not count what it sent to the dead process against the new one."""
    import ray

    table(tmp_path, 16 * 24)
    settings = batch_settings("input.path=in.jsonl", "output.path=out", *QUICK, f"workers=[{fake('a')}, {fake('b')}]")
    read = scan(InputSettings(path=str(tmp_path / "in.jsonl")))
    blocks = [Block(ray.put(rows), rows.num_rows) for piece in read.slices for rows in readers.read(read, piece, 16)]
    monitor = ray.remote(Monitor).remote(read.num_rows)
    items: queue.Queue = queue.Queue()
    dispatcher = Dispatcher(pools_of(ray, settings)[:1], BlockStream(items), 16, monitor)
    dispatcher.start_workers()
    try:
        answered = answer_all(dispatcher, items, blocks[:12])
        (worker,) = dispatcher.scheduler.workers
        os.kill(worker.pid, signal.SIGKILL)
        # Until this process knows the next one, calls go to the dead process and show its death.
        request = dispatcher._actors[worker].request_blocks.options(max_task_retries=-1)
        assert ray.get(request.remote(0, 0), timeout=WAIT_SECONDS)[0] != worker.pid
        answered += answer_all(dispatcher, items, blocks[12:])
    finally:
        dispatcher.stop_workers()
    assert sum(block.num_rows for block in answered) == read.num_rows


def answer_all(dispatcher: Dispatcher, items: queue.Queue, blocks: list[Block]) -> list[Block]:
    """The answers of blocks; afterwards the one worker is idle and has granted credits."""
    answered, deadline = [], time.monotonic() + WAIT_SECONDS
    for block in blocks:
        items.put(block)
    while len(answered) < len(blocks) or not dispatcher.scheduler.workers[0].credits:
        assert time.monotonic() < deadline, f"{len(answered)} of {len(blocks)} blocks were answered"
        answered += dispatcher.poll()
    return answered


def test_a_row_that_kills_workers_of_any_pool_becomes_an_error_row(tmp_path):
    path = write(tmp_path / "in.jsonl", [{"question": "poison" if i == 20 else f"row {i}"} for i in range(48)])
    deadly = {"backend": {"name": "fake", "die_on": "poison"}}
    run_pools(path, tmp_path / "out", fake("a", **deadly), fake("b", **deadly))
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 48
    assert [row["question"] for row in rows if row["error"]] == ["poison"]


def test_ctrl_c_with_pools_keeps_what_is_done_and_the_same_command_resumes(tmp_path, shared_ray):
    path, out = table(tmp_path, 400), tmp_path / "out"
    command = [sys.executable, "-m", "jobs.batch", f"input.path={path}", f"output.path={out}", *QUICK]
    hold = Hold(tmp_path, 32)
    command.append(f"workers=[{fake('a', 0.0, hold)}, {fake('b', 0.0, hold)}]")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=shared_ray)
    wait_for_file(out)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    done = len(rows_of(out))
    assert 0 < done < 400
    assert run_pools(path, out, fake("other", size=3), fake("order")).rows_done_before == done
    check_rows(out, 400)
