"""The scheduler without Ray: no block is lost and every block is completed once, whatever the workers do."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfray.batch.scheduler import COPY_SECONDS, Scheduler, WorkerState


class FakeBlock(NamedTuple):
    ref: int
    num_rows: int = 16


def scheduler_with(*workers: tuple[str, int], blocks: int = 0):
    """A scheduler, its workers with the credits that each has granted, and the queued blocks 0, 1, ..."""
    scheduler: Scheduler[FakeBlock] = Scheduler()
    slots = []
    for number, (pool, credits) in enumerate(workers):
        slot = scheduler.add_worker(f"worker-{number}", pool)
        if credits:
            scheduler.grant(slot, 100 + number, credits)
        slots.append(slot)
    scheduler.add(FakeBlock(n) for n in range(blocks))
    return scheduler, slots


def refs(assignments) -> list[tuple[str, int]]:
    return [(worker.name, block.ref) for worker, block in assignments]


def test_a_worker_is_starting_then_idle_then_busy():
    scheduler, (worker,) = scheduler_with(("a", 0), blocks=1)
    assert worker.state is WorkerState.STARTING
    assert scheduler.dispatch(0.0) == []
    scheduler.grant(worker, 7, 1)
    assert worker.state is WorkerState.IDLE
    ((_, block),) = scheduler.dispatch(0.0)
    assert worker.state is WorkerState.BUSY
    assert scheduler.completed(worker, block)
    assert worker.state is WorkerState.IDLE
    assert not scheduler.has_work


def test_blocks_go_to_the_worker_with_the_fewest():
    scheduler, _ = scheduler_with(("a", 3), ("a", 1), blocks=4)
    assert refs(scheduler.dispatch(0.0)) == [("worker-0", 0), ("worker-1", 1), ("worker-0", 2), ("worker-0", 3)]


def test_no_worker_gets_more_blocks_than_its_credits():
    scheduler, (worker,) = scheduler_with(("a", 2), blocks=5)
    assert len(scheduler.dispatch(0.0)) == 2
    assert (worker.credits, worker.sent_rows, len(scheduler.queued)) == (0, 32, 3)


def test_blocks_of_a_dead_worker_go_out_before_new_ones():
    scheduler, (dead, _) = scheduler_with(("a", 1), ("b", 0), blocks=3)
    scheduler.dispatch(0.0)
    scheduler.died(dead)
    assert dead.state is WorkerState.STARTING
    assert (dead.credits, dead.sent_rows, dead.blocks) == (0, 0, [])
    assert [block.ref for block in scheduler.queued] == [0, 1, 2]


def test_a_lost_answer_is_answered_again_before_new_blocks():
    scheduler, (worker,) = scheduler_with(("a", 1), blocks=2)
    ((_, block),) = scheduler.dispatch(0.0)
    assert scheduler.completed(worker, block)
    scheduler.requeue([block])
    scheduler.grant(worker, 100, 1)
    assert refs(scheduler.dispatch(0.0)) == [("worker-0", 0)]


def test_a_late_block_is_copied_to_an_idle_worker_and_the_first_answer_counts():
    scheduler, (slow, fast) = scheduler_with(("a", 1), ("a", 0), blocks=1)
    ((_, block),) = scheduler.dispatch(0.0)
    scheduler.grant(fast, 101, 2)
    assert scheduler.copy_stragglers(COPY_SECONDS) == []
    assert refs(scheduler.copy_stragglers(COPY_SECONDS + 1)) == [("worker-1", 0)]
    assert scheduler.copy_stragglers(COPY_SECONDS + 1) == []
    assert scheduler.completed(fast, block)
    assert not scheduler.completed(slow, block)
    assert not scheduler.has_work


def test_nothing_is_copied_while_blocks_are_queued():
    scheduler, (_, idle) = scheduler_with(("a", 1), ("a", 0), blocks=2)
    scheduler.dispatch(0.0)
    scheduler.grant(idle, 101, 1)
    assert scheduler.copy_stragglers(COPY_SECONDS + 1) == []


@pytest.mark.parametrize("first", ["slow", "fast"])
def test_a_copied_block_is_requeued_only_after_both_workers_died(first):
    scheduler, (slow, fast) = scheduler_with(("a", 1), ("a", 0), blocks=1)
    scheduler.dispatch(0.0)
    scheduler.grant(fast, 101, 1)
    scheduler.copy_stragglers(COPY_SECONDS + 1)
    one, other = (slow, fast) if first == "slow" else (fast, slow)
    scheduler.died(one)
    assert not scheduler.queued
    scheduler.died(other)
    assert [block.ref for block in scheduler.queued] == [0]


def test_a_process_that_replaced_an_idle_one_owes_only_the_blocks_in_transit():
    scheduler, (worker,) = scheduler_with(("a", 2), blocks=2)
    for _, block in scheduler.dispatch(0.0):
        scheduler.completed(worker, block)
    assert worker.sent_rows == 32
    scheduler.grant(worker, 200, 0)
    assert (worker.sent_rows, worker.pid) == (0, 200)


def test_a_pool_is_saturated_once_all_its_workers_are_up_and_blocks_are_queued():
    scheduler, (a, b) = scheduler_with(("x", 1), ("x", 0), blocks=3)
    scheduler.dispatch(0.0)
    assert not scheduler.is_saturated("x")
    scheduler.grant(b, 9, 1)
    scheduler.dispatch(0.0)
    assert scheduler.is_saturated("x")
    assert scheduler.size_of("x") == 2
    scheduler.died(a)
    assert not scheduler.is_saturated("x")


EVENTS = st.lists(st.tuples(st.sampled_from("grant answer die lose tick".split()), st.integers(0, 99)), max_size=80)


@settings(max_examples=300, deadline=None)
@given(events=EVENTS, workers=st.integers(1, 4), blocks=st.integers(0, 12))
def test_random_events_lose_no_block_and_answer_none_twice(events, workers, blocks):
    """Random grants, answers, deaths, lost answers and times; then all workers work, and every block is answered."""
    scheduler, slots = scheduler_with(*[("pool", 0)] * workers, blocks=blocks)
    now, pids = 0.0, iter(range(1000, 100_000))
    with_worker = {slot.name: [] for slot in slots}  # the blocks that each process holds
    answered: list[FakeBlock] = []

    def send(assignments) -> None:
        for worker, block in assignments:
            assert worker.state is not WorkerState.STARTING
            with_worker[worker.name].append(block)

    def answer(slot, number: int) -> None:
        block = with_worker[slot.name].pop(number % len(with_worker[slot.name]))
        if scheduler.completed(slot, block):
            assert block not in answered
            answered.append(block)

    for event, number in events:
        slot = slots[number % workers]
        if event == "grant" and not slot.credits:
            scheduler.grant(slot, slot.pid or next(pids), 1 + number % 3)
        elif event == "answer" and with_worker[slot.name]:
            answer(slot, number)
        elif event == "die":
            with_worker[slot.name].clear()
            scheduler.died(slot)
        elif event == "lose" and answered:
            scheduler.requeue([answered.pop(number % len(answered))])
        elif event == "tick":
            now += 1.5 * COPY_SECONDS
        send(scheduler.dispatch(now))
        send(scheduler.copy_stragglers(now))
    while scheduler.has_work:
        for slot in slots:
            while with_worker[slot.name]:
                answer(slot, 0)
            if not slot.credits:
                scheduler.grant(slot, slot.pid or next(pids), 2)
        send(scheduler.dispatch(now))
    assert sorted(block.ref for block in answered) == list(range(blocks))
