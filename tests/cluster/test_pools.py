"""What workers book, on machines that exist only as a description; and a job on a machine of one CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

import pytest

from hfray.cluster.pools import leave_room, pool_of, pools_of, sized, worker_threads
from hfray.errors import SettingsError
from tests.conftest import batch_settings

IO = ["input.path=-", "output.path=-"]


@dataclass
class FakeRay:
    """The nodes of a cluster, by their CPUs; `extra` are resources of the first."""

    cpus: list[int]
    gpus: int = 0
    labels: dict[str, str] | None = None

    def nodes(self) -> list[dict]:
        found = [
            {"NodeID": f"n{i}", "Alive": True, "Resources": {"CPU": cpus}, "Labels": {}}
            for i, cpus in enumerate(self.cpus)
        ]
        found[0]["Resources"] |= {"GPU": self.gpus}
        found[0]["Labels"] = self.labels or {}
        return found

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": sum(self.cpus), "GPU": self.gpus}


@pytest.mark.parametrize(
    ("cpus", "overrides", "size", "threads"),
    [
        ([2, 2, 2], [], 3, 2),
        ([2, 2, 2], ["workers.cpus=1"], 6, 1),
        ([64], [], 4, 16),
        ([8], ["workers.size=2"], 2, 4),
        ([8, 8], ["workers.size=4"], 4, 4),
        ([2], ["conf=fake"], 1, 1),
    ],
)
def test_auto_shares_the_cores_of_the_nodes(cpus, overrides, size, threads):
    settings = sized(FakeRay(cpus), batch_settings(*overrides, *IO))
    assert (settings.workers.size, worker_threads(FakeRay(cpus), settings)) == (size, threads)


def test_only_nodes_that_a_worker_fits_on_count():
    ray = FakeRay([4, 32], labels={"pool": "small"})
    settings = sized(ray, batch_settings("workers.labels.pool=small", *IO))
    assert (settings.workers.size, worker_threads(ray, settings)) == (1, 4)


@pytest.mark.parametrize(
    ("cpus", "overrides"),
    [
        (1, []),
        (2, ["workers.size=3"]),
        (2, ["workers.size=8"]),
        (2, ["workers.size=2", "workers.cpus=2"]),
        (2, ["workers.size=[1,4]"]),
        (16, []),
    ],
)
def test_all_workers_of_a_pool_leave_a_cpu_to_the_reader(cpus, overrides, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray = FakeRay([cpus])
    (pool,) = leave_room(ray, pools_of(ray, batch_settings(*overrides, *IO)))
    assert pool.cpus * pool.workers.bounds[1] <= cpus - 1


def test_a_cluster_keeps_what_a_worker_books():
    ray = FakeRay([2])
    pools = [pool_of(ray, batch_settings("ray.address=somewhere:6379", "workers.size=3", *IO))]
    assert leave_room(ray, pools) == pools


def test_pools_that_book_too_much_together_are_named(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray = FakeRay([4])
    pools = pools_of(ray, batch_settings("workers=[{name: a, cpus: 3}, {name: b, cpus: 3}]", *IO))
    with pytest.raises(SettingsError, match=r"workers\[0\]\.cpus=3: .* 4 of this machine's 4 CPUs together"):
        leave_room(ray, pools)


ON_ONE_CPU = """
import sys, ray
from hfray.batch.job import run_batch
from tests.conftest import batch_settings
ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
for size in (1, 3):
    output = f"output.path={sys.argv[2]}/{size}"
    print(run_batch(batch_settings("conf=fake", f"workers.size={size}", f"input.path={sys.argv[1]}", output)).written.rows)
"""


@pytest.mark.ray
def test_jobs_of_one_and_of_three_workers_end_on_one_cpu(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"question": f"row {i}"}) + "\n" for i in range(50)))
    command = [sys.executable, "-c", ON_ONE_CPU, str(path), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.stdout.split()[-2:] == ["50", "50"], done.stderr
