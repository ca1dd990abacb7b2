"""A cluster on this machine: spread work, model caches, pools, nodes that come and go."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from hfray.cluster.services import without_unused
from tests.batch.running import fake
from tests.conftest import run_job
from tests.processes import Hold, wait_for_file

pytestmark = pytest.mark.ray

NODE = {"num_cpus": 2, "object_store_memory": 80 << 20}
# The head takes no work, and notices within seconds that a node is lost.
CONFIG = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}
CONFIG |= {"prestart_worker_first_driver": False}  # no process before there is work for it
HEAD = NODE | {"num_cpus": 0, "include_dashboard": False, "_system_config": CONFIG}
# One worker on each node: every node has one slot, and every worker takes one.
ONE_EACH = ["workers.cpus=2", "workers.resources.slot=1"]
# Rows take several steps, so that a held engine is in the middle of some.
SMALL = ["conf=fake", "backend.batch_size=16", "backend.tokens_per_step=4"]
SMALL += ["workers.rows_per_block=16", "output.flush_seconds=1"]


@pytest.fixture(scope="module")
def caches(tmp_path_factory) -> list[Path]:
    """Model caches of three nodes: two share one, the third has its own."""
    shared, own = tmp_path_factory.mktemp("shared-cache"), tmp_path_factory.mktemp("own-cache")
    return [shared, shared, own]


@pytest.fixture(scope="module")
def changing(caches, s3_environment):
    """A head that takes no work, and three nodes: the first is labelled `fast`, the others have a `slow` slot."""
    import ray
    from ray.cluster_utils import Cluster

    with without_unused(ray):
        found = Cluster(initialize_head=True, head_node_args=HEAD)
        environments = [{"HFRAY_CACHE": str(cache)} | s3_environment for cache in caches]
        found.add_node(labels={"pool": "fast"}, resources={"slot": 1}, env_vars=environments[0], **NODE)
        found.slow = [add_slow_node(found, env_vars=variables) for variables in environments[1:]]
    yield found
    found.shutdown()


def add_slow_node(cluster, **options):
    return cluster.add_node(resources={"slot": 1, "slow": 1}, **options, **NODE)


@pytest.fixture
def cluster(changing):
    """The cluster with all three nodes, also after a test that removed one."""
    while len(changing.slow) < 2:
        changing.slow.append(add_slow_node(changing))
    return changing


def table_of(tmp_path: Path, rows: int) -> Path:
    path = tmp_path / "table.jsonl"
    path.write_text("".join(json.dumps({"question": f"Number {i}?"}) + "\n" for i in range(rows)))
    return path


def environment(cluster, **more: str) -> dict[str, str]:
    return os.environ | {"RAY_ADDRESS": cluster.address} | more


def start_job(cluster, *overrides: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "jobs.batch", *map(str, overrides)]
    return subprocess.Popen(
        command, env=environment(cluster), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )  # fmt: skip


def check_answers(folder: Path, rows: int) -> dict:
    """Each row once; returns the workers by name."""
    ids = ds.dataset(folder, format="parquet").to_table(columns=["row_id"])["row_id"].to_pylist()
    assert len(ids) == rows
    assert len(set(ids)) == rows
    return json.loads((folder / "_hfray" / "summary.json").read_text())["engine"]["workers"]


SIZES = """
import sys, ray
from hfray.cluster.pools import sized, worker_threads
from tests.conftest import batch_settings

ray.init(logging_level="ERROR")
for overrides in ([], ["workers.cpus=1"], ["conf=fake"], ["workers.size=7"], ["conf=bloom_gpu"]):
    settings = sized(ray, batch_settings(*overrides, "input.path=-", "output.path=-"))
    print(settings.workers.size, worker_threads(ray, settings))
"""


def test_auto_is_an_engine_for_every_node_or_gpu(cluster):
    command = [sys.executable, "-c", SIZES]
    done = subprocess.run(command, env=environment(cluster), capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:5] == ["3 2", "6 1", "1 1", "7 1", "1 2"]


def makings(cache: Path) -> list[str]:
    return [line for log in cache.rglob("*.made") for line in log.read_text().splitlines()]


LOAD_EVERYWHERE = """
import sys, pathlib, ray
from hfray.engines.load import load_engine
from tests.conftest import batch_settings

overrides = ["conf=local_openvino", f"model.source={sys.argv[1]}", "backend.batch_size=7"]
settings = batch_settings(*overrides, "input.path=-", "output.path=-")
ray.init(logging_level="ERROR")
load = ray.remote(lambda: load_engine(settings, folder=pathlib.Path("/of/another/node"), threads=1).capacity)
print(ray.get([load.options(num_cpus=0.5, resources={"slot": 0.5}).remote() for _ in range(6)]))
"""


def test_each_cache_is_filled_once(cluster, caches, s3_model, s3_environment):
    """Six engines at once on three nodes, none of which sees the folder that another node prepared."""
    command = [sys.executable, "-c", LOAD_EVERYWHERE, s3_model]
    here = environment(cluster, **s3_environment, PYTHONPATH=str(Path(__file__).parents[2]))
    done = subprocess.run(command, env=here, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([7] * 6)
    assert len(makings(caches[0])) == 1  # for two nodes
    assert len(makings(caches[2])) == 1


def test_work_spreads_over_all_nodes(cluster, caches, s3_model, s3_environment, questions, tmp_path):
    out = tmp_path / "out"
    done = run_job(
        "conf=local_openvino",
        f"model.source={s3_model}",
        f"input.path={questions}",
        f"output.path={out}",
        "generation.max_new_tokens=4",
        "workers.size=3",
        "workers.rows_per_block=1",
        *ONE_EACH,
        env=environment(cluster, **s3_environment),
    )
    assert done.returncode == 0, done.stderr
    workers = check_answers(out, 8)
    assert len({worker["node"] for worker in workers.values()}) == 3
    assert sum(len(makings(cache)) for cache in set(caches)) == 2  # what was there is used


def test_a_lost_node_costs_no_row(cluster, tmp_path):
    out, rows, hold = tmp_path / "out", 1000, Hold(tmp_path, 32)
    overrides = [*SMALL, *ONE_EACH, "workers.size=3", *hold.overrides]
    job = start_job(cluster, *overrides, f"input.path={table_of(tmp_path, rows)}", f"output.path={out}")
    hold.wait(3, job)
    wait_for_file(out)
    cluster.remove_node(cluster.slow.pop(), allow_graceful=False)
    hold.release()
    said = job.communicate(timeout=180)[0]
    assert job.returncode == 0, said
    workers = check_answers(out, rows)
    assert sum(worker["deaths"] for worker in workers.values()) == 1


def test_a_node_that_comes_is_used(changing, tmp_path):
    cluster = changing
    if len(cluster.slow) == 2:
        cluster.remove_node(cluster.slow.pop())
    out, rows, hold = tmp_path / "out", 1500, Hold(tmp_path, 32)
    overrides = [*SMALL, *ONE_EACH, "workers.size=[1,3]", *hold.overrides]
    job = start_job(cluster, *overrides, f"input.path={table_of(tmp_path, rows)}", f"output.path={out}")
    hold.wait(1, job)
    cluster.slow.append(add_slow_node(cluster))
    hold.wait(3, job)
    hold.release()
    said = job.communicate(timeout=180)[0]
    assert job.returncode == 0, said
    workers = check_answers(out, rows)
    busy = {worker["node"] for worker in workers.values() if worker["rows"]}
    assert len(busy) == 3


def test_pools_are_on_their_nodes_and_a_lost_node_costs_no_row(cluster, tmp_path):
    """The lost node's answers that were not written yet are answered again, by whoever is left."""
    out, rows, hold = tmp_path / "out", 800, Hold(tmp_path, 128)
    path = tmp_path / "table.jsonl"  # answers too large to travel with the reply: they lie on the node that dies
    path.write_text("".join(json.dumps({"question": f"{i}? " + "long " * 2000}) + "\n" for i in range(rows)))
    backend = {"name": "fake", "batch_size": 16, "tokens_per_step": 16} | hold.backend
    fast = fake("fast", labels={"pool": "fast"}, cpus=2, backend=backend)
    slow = fake("slow", resources={"slow": 1}, size=2, cpus=2, backend=backend)
    io = [f"input.path={path}", f"output.path={out}", "output.flush_seconds=60"]
    job = start_job(cluster, "conf=fake", f"workers=[{fast}, {slow}]", *io)
    hold.wait(3, job)
    cluster.remove_node(cluster.slow.pop(), allow_graceful=False)
    hold.release()
    said = job.communicate(timeout=180)[0]
    assert job.returncode == 0, said
    workers = check_answers(out, rows)
    nodes = {worker["pool"]: worker["node"] for worker in workers.values()}
    assert nodes["fast"] != nodes["slow"]
    pools = json.loads((out / "_hfray" / "summary.json").read_text())["engine"]["pools"]
    assert pools["fast"]["workers"] == 1
    assert pools["slow"]["workers"] == 2
    assert pools["slow"]["deaths"] == 1
    assert rows + 3 * 16 < hold.answered().total() < rows + 400  # what it had answered, and no more
    assert all(pool["rows"] > 100 for pool in pools.values())
