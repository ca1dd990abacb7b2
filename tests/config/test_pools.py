"""Settings of pools of workers."""

from __future__ import annotations

import json

import pytest

from hfray.config.secrets import to_plain
from hfray.errors import SettingsError
from hfray.runs.fingerprint import fingerprint
from hfray.runs.report import flat
from tests.conftest import batch_settings

IO = ["input.path=in.jsonl", "output.path=out"]


def settings(*overrides: str):
    return batch_settings(*IO, *overrides)


def test_a_pool_overrides_some_settings_and_inherits_the_others():
    workers = "workers=[{name: gpus, gpus: 2}, {backend: openvino, device: cpu, size: [1, 4], cpus: 16}]"
    gpu, cpu = settings("conf=bloom_gpu", workers).pools.items()
    assert (gpu[0], gpu[1].backend.name, gpu[1].device.index, gpu[1].workers.gpus) == ("gpus", "auto", 0, 2)
    assert (cpu[0], cpu[1].backend.name, cpu[1].model.precision) == ("openvino", "openvino", "auto")
    assert (cpu[1].device.index, cpu[1].workers.bounds, cpu[1].workers.cpus) == (-1, (1, 4), 16)
    assert cpu[1].model == gpu[1].model


def test_a_list_of_one_pool_equals_plain_workers():
    plain = settings("backend=transformers", "workers.size=2", "workers.cpus=3")
    listed = settings("workers=[{backend: transformers, size: 2, cpus: 3}]")
    assert listed == plain


@pytest.mark.parametrize(
    ("workers", "words"),
    [
        ("[]", ["workers=[]", "names no pool"]),
        ("[{}, {cpu: 4}]", ["workers[1].cpu=4", "no such key", "workers[1].cpus"]),
        ("[{cpus: many}, {}]", ["workers[0].cpus='many'", "integer"]),
        ("[{}, {size: [3, 1]}]", ["workers[1].size=[3, 1]", "min"]),
        ("[{}, {backend: opnvino}]", ["workers[1].backend=opnvino", "Did you mean openvino"]),
        ("[{}, {backend: {weight_format: int8}}]", ["workers[1].backend", "name: openvino"]),
        ("[{}, {device: {index: 0, map: auto}}]", ["workers[1].device.index=0", "workers[1].device.map='auto'"]),
        ("[{}, {model: local}]", ["workers[1].model.source is not given"]),
        ("[{name: a}, {name: a}]", ["workers[0].name=a", "two pools"]),
        ("[{rows_per_block: 4}, {rows_per_block: 8}]", ["rows_per_block", "one number"]),
    ],
)
def test_mistakes_in_a_pool_are_named(workers, words):
    with pytest.raises(SettingsError) as caught:
        settings(f"workers={workers}")
    for word in words:
        assert word in str(caught.value)


def test_a_key_of_all_workers_beside_pools_is_named():
    with pytest.raises(SettingsError, match=r"workers\.size=3: workers is a list of pools"):
        settings("workers=[{}, {}]", "workers.size=3")


def test_the_fingerprint_holds_what_pools_run_and_not_their_number_or_order():
    def mark(workers):
        return fingerprint(settings(f"workers={workers}"))

    one = fingerprint(settings())
    assert mark("[{size: 4}, {cpus: 2, labels: {pool: x}}]") == one
    assert mark("[{backend: openvino, device: intel_gpu}, {}]") == one
    both = mark("[{}, {backend: transformers, size: 3}]")
    assert both == mark("[{backend: transformers}, {size: 2}]") != one
    assert [engine["backend"] for engine in both["engines"]] == ["openvino", "transformers"]
    assert json.loads(json.dumps(both)) == both
    assert mark("[{}, {backend: {name: openvino, weight_format: int8}}]") != one


def test_secrets_of_a_pool_are_not_written(tmp_path):
    plain = to_plain(settings("workers=[{}, {model: {source: some/model, kwargs: {token: hush}}}]"))
    assert "hush" not in json.dumps(plain)
    assert "hush" not in str(flat({"workers": [{"model": {"kwargs": {"token": "hush"}}}]}))
