"""What workers book, on machines that exist only as a description; and a job on a machine of one CPU."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass

import pytest

from hfray.cluster.pools import check_resources, leave_room, pool_of, pools_of, sized, worker_gpus, worker_threads
from hfray.errors import SettingsError
from tests.conftest import batch_settings

IO = ["input.path=-", "output.path=-"]


@dataclass
class FakeRay:
    """The nodes of a cluster, by their CPUs and their GPUs; `labels` are those of the first."""

    cpus: list[int]
    gpus: tuple[int, ...] = ()
    labels: dict[str, str] | None = None

    def nodes(self) -> list[dict]:
        found = [
            {"NodeID": f"n{i}", "Alive": True, "Resources": {"CPU": cpus}, "Labels": {}}
            for i, cpus in enumerate(self.cpus)
        ]
        for node, gpus in zip(found, self.gpus, strict=False):
            node["Resources"] |= {"GPU": gpus}
        found[0]["Labels"] = self.labels or {}
        return found

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": sum(self.cpus), "GPU": sum(self.gpus)}


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


GPU_CASES = [
    (["conf=smollm2_cpu"], 0),
    (["conf=bloom_gpu"], 1),
    (["conf=bloom_gpu_auto"], 8),  # accelerate's map is over all GPUs of a node
    (["conf=bloom_gpu_auto", "workers.gpus=2"], 2),
    (["conf=bloom_gpu_auto", "workers.labels.pool=small"], 4),
    (["conf=bloom_gpu", "device=auto", "device.map={a: 0, b: 2, c: cpu}"], 3),
    (["conf=bloom_gpu", "device=auto", "device.map={a: cpu}"], 0),
    (["conf=bloom_gpu", "device=auto", "device.map=cuda:1"], 2),
    (["conf=bloom_gpu", "backend=vllm"], 1),
    (["conf=bloom_gpu", "backend=vllm", "+backend.options.tensor_parallel_size=2"], 2),
    (["conf=bloom_gpu", "backend=vllm", "backend.options={tensor_parallel_size: 2, pipeline_parallel_size: 2}"], 4),
    (["conf=bloom_gpu", "device=auto", "backend=vllm"], 8),
    (["conf=bloom_gpu", "device=auto", "backend=vllm", "+backend.options.tensor_parallel_size=2"], 2),
    (["conf=smollm2_cpu", "backend=vllm", "+backend.options.tensor_parallel_size=2"], 0),
]


@pytest.mark.parametrize(("overrides", "gpus"), GPU_CASES)
def test_a_worker_books_the_gpus_that_its_engine_runs_on(overrides, gpus):
    ray = FakeRay([16, 64, 16], gpus=(4, 8, 0), labels={"pool": "small"})
    assert worker_gpus(ray, batch_settings(*overrides, *IO)) == gpus


def test_a_map_books_one_gpu_while_no_node_has_any():
    assert worker_gpus(FakeRay([16]), batch_settings("conf=bloom_gpu_auto", *IO)) == 1


def test_auto_counts_the_workers_of_several_gpus():
    settings = batch_settings("conf=bloom_gpu", "backend=vllm", "+backend.options.tensor_parallel_size=2", *IO)
    assert sized(FakeRay([64, 64], gpus=(8, 4)), settings).workers.size == 6


@pytest.mark.parametrize(
    "overrides",
    [
        ["backend=vllm", "+backend.options.tensor_parallel_size=2", "workers.gpus=1"],
        ["backend=vllm", "+backend.options.tensor_parallel_size=2", "workers.gpus=0.5"],
        ["device=auto", "device.map={a: 0, b: 1}", "workers.gpus=1"],
    ],
)
def test_fewer_gpus_than_the_engine_runs_on_are_refused(overrides):
    with pytest.raises(SettingsError, match=r"workers\.gpus=.*runs on 2 GPUs.*workers\.gpus=2"):
        batch_settings("conf=bloom_gpu", *overrides, *IO)


CLUSTER = "ray.address=somewhere:6379"
TWO_GPUS = ["conf=bloom_gpu", "backend=vllm", "+backend.options.tensor_parallel_size=2"]


@pytest.mark.parametrize(
    ("cpus", "gpus", "overrides", "words"),
    [
        (
            [8, 8],
            (1, 1),
            TWO_GPUS,
            r"tensor_parallel_size.* 2 GPUs on one node, and no node .* more than 1 now\. Waiting",
        ),
        ([8, 8], (1, 2), TWO_GPUS, None),
        (
            [8, 8],
            (1, 1),
            ["conf=bloom_gpu", "workers.gpus=2"],
            r"workers\.gpus=2: .*no node of the cluster has more than 1",
        ),
        (
            [8, 8],
            (),
            ["conf=bloom_gpu"],
            r"device\.index=0: .*no node of the cluster has more than 0.*start_timeout=3600",
        ),
        ([8, 8], (), ["workers.cpus=16"], r"workers: a worker needs 15 CPUs .*the cluster has no such node now"),
        ([8, 8], (), ["workers.resources.slot=1"], r"slot.*the cluster has no such node now"),
        ([8, 8], (0, 2), [*TWO_GPUS, "workers.labels.pool=first"], r"pool.*the cluster has no such node now"),
        ([8, 8], (), [], None),
    ],
)
def test_a_worker_that_fits_no_single_node_is_told_at_once(cpus, gpus, overrides, words):
    ray = FakeRay(cpus, gpus, labels={"pool": "first"})
    said = check_resources(ray, pool_of(ray, batch_settings(*overrides, CLUSTER, *IO)))
    assert re.search(words, said) if words else said is None


def test_this_machine_has_too_few_gpus(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray = FakeRay([8], gpus=(1,))
    with pytest.raises(SettingsError, match=r"tensor_parallel_size.*needs 2 GPU, and this machine has 1"):
        check_resources(ray, pool_of(ray, batch_settings(*TWO_GPUS, *IO)))


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
