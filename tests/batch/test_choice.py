"""backend=auto in a job: chosen on a node, kept in run.json, and kept by a resumed run."""

from __future__ import annotations

import importlib.util
import json

import pytest

from hfray.batch.choice import with_earlier_engines
from hfray.batch.job import run_batch
from hfray.config.backend import AutoBackend
from hfray.errors import ExitCode, SettingsError
from hfray.tools.plan import make_plan
from tests.batch.running import check_rows, rows_of
from tests.conftest import batch_settings

HAS_VLLM = importlib.util.find_spec("vllm") is not None
IO = ["input.path=-", "output.path=-"]


class Folder:
    """An output folder with rows, whose run.json names engines."""

    def __init__(self, chosen):
        self._chosen = chosen

    def parts(self):
        return ["part-0.parquet"]

    def read_json(self, *_):
        return {"chosen": {name: {"engine": engine, "reason": "so"} for name, engine in self._chosen.items()}}


POOLS = "workers=[{name: big}, {name: small}, {name: cpu, backend: fake, device: cpu}]"


def test_backends_of_the_engines():
    auto = AutoBackend(name="auto", batch_size=9, prefix_caching=False)
    vllm, paged, own = map(auto.resolved, ("vllm", "paged", "transformers"))
    assert (vllm.name, paged.name, own.name) == ("vllm", "transformers", "transformers")
    assert (paged.paged, paged.attention, own.paged, own.attention) == (True, "flash_attention_2", False, None)
    assert {(backend.batch_size, backend.prefix_caching) for backend in (vllm, paged, own)} == {(9, False)}


@pytest.mark.parametrize(
    ("chosen", "overrides", "names"),
    [
        ({"": "vllm"}, [], ["vllm"]),
        ({"": "transformers"}, [], ["transformers"]),
        ({}, [], ["auto"]),  # rows that no auto made: their fingerprint is compared
        ({"": "vllm"}, ["backend=fake", "device=cpu"], ["fake"]),
        ({"": "vllm"}, ["output.overwrite=true"], ["auto"]),
        ({"": "vllm"}, [POOLS], ["vllm", "vllm", "fake"]),
        ({"big": "vllm", "small": "transformers"}, [POOLS], ["vllm", "transformers", "fake"]),
        ({"big": "vllm", "other": "transformers"}, [POOLS], ["vllm", "auto", "fake"]),
    ],
)
def test_a_resumed_run_keeps_the_engines(chosen, overrides, names):
    settings = with_earlier_engines(batch_settings("conf=bloom_gpu", *IO, *overrides), Folder(chosen))
    assert [pool.backend.name for pool in settings.pools.values()] == names


def test_the_names_of_pools_stay_as_they_were():
    settings = batch_settings("conf=bloom_gpu", *IO, "workers=[{size: 1}, {size: 2}]")
    assert list(settings.pools) == list(settings.with_engines(dict.fromkeys(settings.pools, "vllm")).pools)


@pytest.mark.ray
@pytest.mark.skipif(HAS_VLLM, reason="with vLLM the choice is vLLM: the test below")
def test_a_job_chooses_once_and_says_so(shared_ray, tiny_llama, questions, tmp_path, capfd):
    out = tmp_path / "out"
    io = [f"input.path={questions}", f"output.path={out}", f"model.source={tiny_llama}"]
    auto = ["conf=smollm2_cpu", "backend=auto", "generation.max_new_tokens=4", *io]

    plan = make_plan(batch_settings(*auto))
    assert "vLLM is not installed" in plan.trial.engine

    assert run_batch(batch_settings(*auto, "input.limit=4")).exit_code == ExitCode.OK
    assert "backend=auto: hfray's engine over torch, as vLLM is not installed" in capfd.readouterr().err
    run = json.loads((out / "_hfray/run.json").read_text())
    assert run["fingerprint"]["backend"] == run["settings"]["backend"]["name"] == "transformers"
    assert run["chosen"][""]["engine"] == "transformers"
    assert "vLLM is not installed" in run["chosen"][""]["reason"]

    assert run_batch(batch_settings(*auto)).written.rows == 4
    assert "backend=auto" not in capfd.readouterr().err
    again = json.loads((out / "_hfray/run.json").read_text())
    assert (again["chosen"], again["fingerprint"]) == (run["chosen"], run["fingerprint"])
    check_rows(out, 8)
    with pytest.raises(SettingsError, match=r"backend was 'transformers' and is 'vllm'"):
        run_batch(batch_settings(*auto, "backend=vllm"))


@pytest.mark.ray
@pytest.mark.model
@pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed: it takes an environment of its own")
def test_a_job_chooses_vllm_where_it_is_installed(shared_ray, tiny_llama, questions, tmp_path):
    io = [f"input.path={questions}", f"model.source={tiny_llama}", "generation.max_new_tokens=4"]
    exact = ["conf=smollm2_cpu", "model.precision=exact", *io]
    found = {}
    for backend in ("auto", "transformers"):
        out = tmp_path / backend
        summary = run_batch(batch_settings(*exact, f"backend={backend}", f"output.path={out}"))
        assert (summary.exit_code, summary.written.failed) == (ExitCode.OK, 0)
        found[backend] = rows_of(out)
    run = json.loads((tmp_path / "auto/_hfray/run.json").read_text())
    assert run["fingerprint"]["backend"] == run["settings"]["backend"]["name"] == run["chosen"][""]["engine"] == "vllm"
    assert "runs LlamaForCausalLM" in run["chosen"][""]["reason"]
    assert run["precisions"] == ["fp32"]
    for row, other in zip(*found.values(), strict=True):
        assert row["row_id"] == other["row_id"]
        assert row["num_prompt_tokens"] == other["num_prompt_tokens"]
