"""The decisions before an export, without an export: group sizes, the command, its errors, the cache key."""

from __future__ import annotations

import json
import sys

import pytest

from hfray.config.backend import OpenVINOBackend
from hfray.errors import SettingsError
from hfray.models import openvino_ir
from hfray.models.folder import TOKENIZER_FILES
from tests.conftest import batch_settings


def backend(**options):
    return OpenVINOBackend(name="openvino", **options)


def folder_with(tmp_path, **config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(("widths", "size"), [((512, 1024), 128), ((576, 1536), 64), ((48, 96), 16), ((50,), -1)])
def test_the_largest_group_size_that_divides_every_width(tmp_path, widths, size):
    keys = ("hidden_size", "intermediate_size")
    folder = folder_with(tmp_path, **dict(zip(keys, widths, strict=False)))
    assert openvino_ir.fitting_group_size(folder) == size
    assert openvino_ir.group_size(folder, backend(weight_format="int4")) == size
    assert openvino_ir.group_size(folder, backend(weight_format="int8")) is None


def test_a_group_size_that_does_not_fit_is_named_with_one_that_does(tmp_path):
    folder = folder_with(tmp_path, hidden_size=576)
    with pytest.raises(SettingsError, match=r"backend\.group_size=128.*576.*backend\.group_size=64"):
        openvino_ir.group_size(folder, backend(weight_format="int4", group_size=128))
    assert openvino_ir.group_size(folder, backend(weight_format="int4", group_size=32)) == 32


def record_run(monkeypatch, code=0, lines=(), files=TOKENIZER_FILES):
    commands = []

    def run(command, on_line):
        commands.append(command)
        for name in files:
            (openvino_ir.Path(command[-1]) / name).touch()
        return code, list(lines)

    monkeypatch.setattr(openvino_ir, "_run", run)
    return commands


def test_the_command_of_an_int4_export(tmp_path, monkeypatch):
    commands = record_run(monkeypatch)
    source = folder_with(tmp_path, hidden_size=576)
    openvino_ir.export(source, tmp_path, weight_format="int4", trust_remote_code=True)
    assert commands[0][1:] == [
        *("-m", "optimum.commands.optimum_cli", "export", "openvino", "--model", str(source)),
        *("--task", "text-generation-with-past", "--weight-format", "int4", "--group-size", "64"),
        *("--trust-remote-code", str(tmp_path)),
    ]


def test_a_failed_export_quotes_its_last_lines_and_the_remedy(tmp_path, monkeypatch):
    record_run(monkeypatch, 1, ["first", "a", "b", "No module named 'optimum'"])
    with pytest.raises(
        SettingsError, match=r"OpenVINO: a b No module named 'optimum' Install it with .*hfray\[export\]"
    ):
        openvino_ir.export(tmp_path, tmp_path)


def test_an_export_without_tokenizer_is_refused(tmp_path, monkeypatch):
    record_run(monkeypatch, files=TOKENIZER_FILES[:1])
    with pytest.raises(SettingsError, match=r"tokenizer cannot be converted.*openvino_detokenizer\.xml"):
        openvino_ir.export(tmp_path, tmp_path)


def test_lines_of_a_real_process_arrive_one_by_one():
    seen = []
    code, lines = openvino_ir._run(["sh", "-c", "printf 'one\\n\\n 50%%\\r100%%\\n'; exit 3"], seen.append)
    assert (code, lines) == (3, ["one", "50%", "100%"])
    assert seen == lines


def test_an_export_sends_no_usage_statistics(monkeypatch):
    """NNCF and OpenVINO's converter ask this function of OpenVINO's telemetry."""
    pytest.importorskip("openvino_telemetry")
    code = "from openvino_telemetry.utils.opt_in_checker import OptInChecker; print(OptInChecker._run_in_ci())"
    monkeypatch.delenv("CI", raising=False)
    assert openvino_ir._run([sys.executable, "-c", code], None) == (0, ["True"])


def test_a_changed_model_is_exported_again(tmp_path, monkeypatch):
    monkeypatch.setenv("HFRAY_CACHE", str(tmp_path / "cache"))
    commands = record_run(monkeypatch)
    (tmp_path / "model").mkdir()
    source = folder_with(tmp_path / "model", hidden_size=64)
    settings = batch_settings("conf=gpt2_openvino", f"model.source={source}", "input.path=-", "output.path=-")
    first = openvino_ir.export_cached(source, settings, settings.backend)
    assert openvino_ir.export_cached(source, settings, settings.backend) == first
    folder_with(tmp_path / "model", hidden_size=128)
    assert openvino_ir.export_cached(source, settings, settings.backend) != first
    assert len(commands) == 2
