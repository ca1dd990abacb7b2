"""`python -m jobs.export`: the folders of every weight format load and generate, also through LangChain."""

from __future__ import annotations

import json
import shutil

import pytest
import tokenizers
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from hfray.config.compose import load_settings
from hfray.errors import SettingsError
from hfray.langchain.llm import HuggingFacePipeline
from hfray.models import openvino_ir
from hfray.models.openvino_ir import fitting_group_size, group_size
from hfray.tools.export import ExportSettings, run_export, try_folder
from tests.conftest import QUESTIONS, run_job
from tests.tools.exporter import Exporter

GREEDY = {"max_new_tokens": 8, "do_sample": False}


@pytest.fixture(scope="module")
def one_process():
    """All exports of a test run in one process. The test of the command runs its export as users do."""
    exporter = Exporter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino_ir, "_run", exporter.run)
        yield
    exporter.close()


@pytest.mark.model
def test_a_tokenizer_that_cannot_be_converted_is_named_and_no_folder_stays(tiny_gpt2, tmp_path, one_process):
    source, target = tmp_path / "odd", tmp_path / "ir"
    shutil.copytree(tiny_gpt2, source)
    odd = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    odd.pre_tokenizer = tokenizers.pre_tokenizers.UnicodeScripts()
    PreTrainedTokenizerFast(tokenizer_object=odd, unk_token="<unk>", eos_token="<unk>").save_pretrained(source)
    with pytest.raises(SettingsError, match=r"its tokenizer cannot be converted.*Use backend=transformers"):
        run_export(settings_for(source, target), Console(quiet=True))
    assert not target.exists()


def settings_for(source, target, *overrides):
    common = ("conf=gpt2_openvino", f"model.source={source}", f"output.path={target}")
    return load_settings([*common, *overrides], ExportSettings)


def langchain(folder, **ov_config):
    return HuggingFacePipeline.from_model_id(
        model_id=str(folder),
        task="text-generation",
        backend="openvino",
        model_kwargs={"device": "CPU", "ov_config": ov_config},
        pipeline_kwargs=GREEDY,
    )


@pytest.mark.model
def test_the_command_makes_an_int8_folder_for_quantized_inference(tiny_gpt2, tmp_path):
    target = tmp_path / "int8"
    done = run_job(
        "conf=gpt2_openvino",
        f"model.source={tiny_gpt2}",
        "backend.weight_format=int8",
        f"output.path={target}",
        module="jobs.export",
    )
    assert done.returncode == 0, done.stderr
    assert "in int8" in done.stdout
    assert "MB before" in done.stdout
    assert "It loads, and continues 'The capital of France is'" in done.stdout
    assert not list(tmp_path.glob(".exporting-*"))
    # as in LangChain's documentation: u8 KV cache and dynamic quantization
    llm = langchain(target, KV_CACHE_PRECISION="u8", DYNAMIC_QUANTIZATION_GROUP_SIZE="32", PERFORMANCE_HINT="LATENCY")
    answers = llm.batch(QUESTIONS)
    assert all(answer.startswith(question) for answer, question in zip(answers, QUESTIONS, strict=True))
    with pytest.raises(SettingsError, match=r"output\.path=.*exists already.*output\.overwrite=true"):
        run_export(settings_for(tiny_gpt2, target), Console(quiet=True))


@pytest.mark.model
@pytest.mark.parametrize(("weight_format", "expected_group"), [("fp16", None), ("int4", 32)])
def test_formats(tiny_gpt2, tmp_path, one_process, weight_format, expected_group):
    target = tmp_path / "ir"
    target.mkdir()  # an empty folder may exist
    overrides = (f"backend.weight_format={weight_format}",)
    report = run_export(settings_for(tiny_gpt2, target, *overrides), Console(quiet=True))
    assert report.group_size == expected_group
    assert report.text
    assert report.bytes_before > 0
    assert report.bytes_after == sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    assert langchain(target).invoke("Hello").startswith("Hello")


@pytest.mark.model
def test_an_fp32_folder_passes_the_trial(tiny_gpt2_ir, tmp_path):
    assert try_folder(tiny_gpt2_ir, settings_for(tiny_gpt2_ir, tmp_path / "x"))


@pytest.mark.model
def test_a_folder_that_does_not_work_is_reported(tiny_gpt2_ir, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in tiny_gpt2_ir.iterdir():
        (broken / path.name).symlink_to(path)
    (broken / "openvino_model.xml").unlink()
    (broken / "openvino_model.xml").write_text("<net/>")
    with pytest.raises(RuntimeError, match="does not work"):
        try_folder(broken, settings_for(tiny_gpt2_ir, tmp_path / "x"))


def test_group_size_fits_the_channels(tmp_path):
    def backend(*overrides):
        return settings_for("x", tmp_path, "backend.weight_format=int4", *overrides).backend

    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 576, "intermediate_size": 1536}))
    assert fitting_group_size(tmp_path) == 64
    assert group_size(tmp_path, backend()) == 64
    assert group_size(tmp_path, backend("backend.group_size=32")) == 32
    with pytest.raises(SettingsError, match=r"backend.group_size=128: .*width 576.*backend.group_size=64"):
        group_size(tmp_path, backend("backend.group_size=128"))


@pytest.mark.model
def test_models_that_cannot_be_exported_are_refused(tiny_gpt2, tiny_gpt2_ir, tmp_path):
    quiet = Console(quiet=True)
    with pytest.raises(SettingsError, match="OpenVINO IR folder already"):
        run_export(settings_for(tiny_gpt2_ir, tmp_path / "out"), quiet)
    with pytest.raises(SettingsError, match=r"backend=transformers: .*Use backend=openvino"):
        settings_for(tiny_gpt2, tmp_path / "out", "conf=gpt2_cpu")
    with pytest.raises(SettingsError, match="no such folder"):
        run_export(settings_for("/no/such", tmp_path / "out"), quiet)
    assert not (tmp_path / "out").exists()
