"""Several pools at one table: unlike speeds, deaths, nodes that never come; every row once, whoever answers it."""

from __future__ import annotations

import json
import threading
import time

import psutil
import pytest

from hfray.batch import OK, run_batch
from hfray.config import SettingsError
from hfray.resume import fingerprint
from tests.conftest import QUESTIONS, batch_settings
from tests.test_batch import rows_of, write

IO = ["input.path=in.jsonl", "output.path=out"]
QUICK = ["conf=fake", "output.flush_seconds=0.5"]


def fake(name: str, seconds: float = 0.0, **more: object) -> str:
    """A pool of fake engines of 16 rows, in Hydra's grammar."""
    own = {"name": name, "rows_per_block": 16, "backend": {"name": "fake", "batch_size": 16, "step_seconds": seconds}}
    return json.dumps(own | more).replace('"', "")


@pytest.fixture(scope="module")
def shared_ray():
    import ray

    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def job(path, output, *pools: str, overrides=()):
    workers = f"workers=[{', '.join(pools)}]"
    settings = batch_settings(f"input.path={path}", f"output.path={output}", *QUICK, workers, *overrides)
    return run_batch(settings)


def table(tmp_path, rows: int):
    return write(tmp_path / "in.jsonl", [{"question": f"row {i}"} for i in range(rows)])


def check_rows(output, rows: int) -> None:
    found = rows_of(output)
    assert len({row["row_id"] for row in found}) == len(found) == rows


def test_each_row_once_and_the_fast_does_more(shared_ray, tmp_path):
    summary = job(table(tmp_path, 600), tmp_path / "out", fake("fast", 0.05), fake("slow", 0.4))
    check_rows(tmp_path / "out", 600)
    pools = summary.engine["pools"]
    print(json.dumps(pools, indent=1), summary.timeline)
    assert summary.exit_code == OK
    assert pools["fast"]["rows"] > 2 * pools["slow"]["rows"] > 0
    assert pools["fast"]["rows"] + pools["slow"]["rows"] == 600
