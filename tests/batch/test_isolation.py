"""Isolation of rows that kill their worker: the groups, the error of the row that killed the workers, and the gate; no Ray, no engine."""

from __future__ import annotations

import asyncio

import pytest

from hfray.batch.isolation import FATAL_DEATHS, Gate, Isolation, groups
from hfray.completion import Completion


def test_suspects_of_two_deaths_run_in_groups_of_eight_and_those_of_three_alone():
    ids = [f"r{n}" for n in range(20)]
    deaths = {"r3": 3, "r5": 4} | {f"r{n}": 2 for n in range(10, 19)}
    found = groups(ids, deaths)
    assert found[:2] == [[5], [3]]
    assert found[2] == list(range(10, 18))
    assert sorted(n for group in found for n in group) == list(range(20))


def test_rows_without_deaths_are_one_group():
    assert groups(["a", "b", "c"], {}) == [[0, 1, 2]]
    assert groups([], {}) == []


class Engine:
    """Records what runs at the same time."""

    def __init__(self) -> None:
        self.running: set[str] = set()
        self.together: list[set[str]] = []
        self.alone: list[list[str]] = []
        self.errors: dict[str, str | None] = {}

    async def answer(self, row_ids, rows, errors):
        self.running |= set(row_ids)
        self.errors |= dict(zip(row_ids, errors, strict=True))
        await asyncio.sleep(0)
        self.together.append(set(self.running))
        await asyncio.sleep(0)
        self.running -= set(row_ids)
        return [f"prompt {row['n']}" for row in rows], [
            Completion(error=error, text=i) for i, error in zip(row_ids, errors, strict=True)
        ]

    async def report_alone(self, row_ids) -> None:
        self.alone.append(list(row_ids))


def answer(isolation: Isolation, ids: list[str], deaths: dict[str, int], errors=None):
    return isolation.answer(ids, [{"n": i} for i in ids], errors or [None] * len(ids), deaths)


def test_ordinary_blocks_run_side_by_side():
    async def both():
        engine = Engine()
        isolation = Isolation(engine.answer, engine.report_alone)
        await asyncio.gather(answer(isolation, ["a"], {}), answer(isolation, ["b"], {"b": 1}))
        return engine

    engine = asyncio.run(both())
    assert {"a", "b"} in engine.together
    assert engine.alone == []


def test_a_suspect_runs_alone_and_answers_keep_their_order():
    async def both():
        engine = Engine()
        isolation = Isolation(engine.answer, engine.report_alone)
        ids = ["s0", "s1", "s2"]
        found, _ = await asyncio.gather(answer(isolation, ids, {"s1": 3, "s2": 2}), answer(isolation, ["other"], {}))
        return engine, found

    engine, (prompts, completions) = asyncio.run(both())
    assert {"s1"} in engine.together
    assert {"s0", "s2"} in engine.together
    assert all(ids in ({"s1"}, {"s0", "s2"}, {"other"}) for ids in engine.together)
    assert engine.alone == [["s1"], [], ["s2", "s0"], []]
    assert prompts == ["prompt s0", "prompt s1", "prompt s2"]
    assert [completion.text for completion in completions] == ["s0", "s1", "s2"]


def test_the_culprit_becomes_an_error_row_and_an_earlier_error_stays():
    engine = Engine()
    isolation = Isolation(engine.answer, engine.report_alone)
    deaths = {"bad": FATAL_DEATHS, "torn": FATAL_DEATHS, "fine": FATAL_DEATHS - 1}
    asyncio.run(answer(isolation, ["bad", "torn", "fine"], deaths, [None, "is not JSON", None]))
    assert "ended its worker's process" in engine.errors["bad"]
    assert "4 times" in engine.errors["bad"]
    assert engine.errors["torn"] == "is not JSON"
    assert engine.errors["fine"] is None


def test_the_gate_admits_nobody_while_one_is_alone():
    async def scenario() -> list[str]:
        gate, log = Gate(), []
        leave = asyncio.Event()

        async def alone() -> None:
            async with gate.alone():
                log.append("alone in")
                await leave.wait()
                log.append("alone out")

        async def shared(name: str) -> None:
            async with gate.shared():
                log.append(name)

        async with gate.shared():
            waiting = asyncio.create_task(alone())
            await asyncio.sleep(0.01)
            late = asyncio.create_task(shared("late"))
            await asyncio.sleep(0.01)
            log.append("first out")
        await asyncio.sleep(0.01)
        leave.set()
        await asyncio.gather(waiting, late)
        return log

    assert asyncio.run(scenario()) == ["first out", "alone in", "alone out", "late"]


def test_the_gate_opens_again_after_an_error():
    async def scenario() -> str:
        gate = Gate()
        for enter in (gate.alone, gate.shared):
            with pytest.raises(RuntimeError):
                async with enter():
                    raise RuntimeError
        async with gate.alone():
            return "in"

    assert asyncio.run(asyncio.wait_for(scenario(), 5)) == "in"
