"""When the writer starts files, and what it does about lost blocks. Ray's calls are replaced."""

from types import SimpleNamespace

import pytest
from ray.exceptions import ObjectLostError, RayTaskError

from hfray.batch import writer as module
from hfray.batch.dataset import Block
from hfray.batch.writer import Writer
from hfray.data.partreport import PartReport


class Store:
    """Ray's part: the tasks that the writer starts, and the objects that are lost."""

    def __init__(self) -> None:
        self.files: dict[str, list[str]] = {}
        self.lost: set[str] = set()
        self.dropped: list[str] = []

    def options(self, **_) -> "Store":
        return self

    def remote(self, _, name: str, run_id: str, *refs: str) -> tuple:
        self.files[name] = list(refs)
        return (name, *refs)

    def wait(self, tasks, timeout=None) -> tuple[list, list]:
        return list(tasks), []

    def get(self, task) -> PartReport | None:
        refs = task[1:] if isinstance(task, tuple) else [task]
        if self.lost & set(refs):
            raise ObjectLostError("0" * 40, "", "")
        return PartReport(rows=len(refs))

    def drop_part(self, name: str) -> None:
        self.dropped.append(name)
        del self.files[name]


@pytest.fixture
def store(monkeypatch) -> Store:
    store = Store()
    monkeypatch.setattr(module, "ray", SimpleNamespace(wait=store.wait, get=store.get))
    monkeypatch.setattr(module, "_write_part", store)
    monkeypatch.setattr(module, "_num_rows", SimpleNamespace(remote=lambda ref: ref))
    return store


def make(store: Store, rows_per_file: int = 4, flush_seconds: float = 3600) -> Writer:
    output = SimpleNamespace(is_local=False, drop_part=store.drop_part)
    return Writer(output, "run1", rows_per_file, flush_seconds)


def block(name: str, rows: int = 2) -> Block:
    return Block(name, rows, source=Block(f"source of {name}", rows))


def test_a_file_starts_when_there_are_enough_rows(store):
    writer = make(store)
    for name in "abc":
        writer.add(block(name))
    writer.add(block("empty", 0))
    assert store.files == {"part-run1-00000.parquet": ["a", "b"]}
    writer.flush()
    assert store.files["part-run1-00001.parquet"] == ["c"]
    assert writer.wait().rows == 3


def test_a_file_starts_when_a_block_has_waited_long_enough(store):
    patient, hasty = make(store), make(store, flush_seconds=0)
    patient.add(block("a"))
    assert patient.poll().rows == 0
    hasty.add(block("b"))
    assert hasty.poll().rows == 1


def test_a_lost_block_is_answered_again_and_the_others_are_written(store):
    writer = make(store)
    store.lost = {"b"}
    writer.add(block("a"))
    writer.add(block("b"))
    assert not writer.drain(0)
    assert store.dropped == ["part-run1-00000.parquet"]
    assert writer.take_lost() == [Block("source of b", 2)]
    assert writer.take_lost() == []
    assert writer.drain(0)
    assert store.files == {"part-run1-00001.parquet": ["a"]}


def test_a_lost_block_without_a_source_ends_the_run(store):
    writer = make(store)
    store.lost = {"a"}
    writer.add(Block("a", 4))
    with pytest.raises(ObjectLostError):
        writer.wait()


def test_an_error_of_the_disk_ends_the_run(store, monkeypatch):
    writer = make(store)

    def full(_):
        raise RayTaskError("write", "no space left", OSError("no space left"))

    monkeypatch.setattr(module.ray, "get", full)
    writer.add(block("a", 4))
    with pytest.raises(RayTaskError):
        writer.wait()
