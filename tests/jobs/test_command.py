"""What the commands share, and the `hfray` script that runs them."""

from __future__ import annotations

import importlib
import signal
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from hfray import interrupts
from hfray.config.compose import config_folder
from hfray.errors import SettingsError
from hfray.runs.status import StatusSettings
from jobs.__main__ import COMMANDS, main
from jobs.command import run, settings_of
from tests.conftest import run_job


@pytest.fixture
def keep_signals():
    before = {number: signal.getsignal(number) for number in interrupts.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def raises(error: BaseException):
    def command() -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (lambda: 0, 0, ""),
        (lambda: 3, 3, ""),
        (raises(SettingsError("input.path=x: no such file.")), 2, "error: input.path=x: no such file.\n"),
        (raises(RuntimeError("the engine died")), 1, "error: the engine died\n"),
        (raises(KeyboardInterrupt()), 130, "interrupted\n"),
        (lambda: signal.raise_signal(signal.SIGINT) or 0, 130, "interrupted\n"),
        (lambda: signal.raise_signal(signal.SIGTERM) or 0, 130, "interrupted\n"),
        (lambda: signal.raise_signal(signal.SIGHUP) or 0, 130, "interrupted\n"),
    ],
)
def test_exit_codes(command, code, message, capsys, keep_signals):
    with pytest.raises(SystemExit) as ended:
        run(command)
    assert ended.value.code == code
    assert capsys.readouterr().err == message


def test_a_mistake_of_the_program_keeps_its_traceback(keep_signals):
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 // 0)


def test_cfg_prints_the_composed_settings(capsys):
    with pytest.raises(SystemExit) as ended:
        settings_of(StatusSettings, "doc", ["output.path=a, b", "--cfg"])
    assert ended.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out) == {"output": {"path": "a, b"}}


def test_cfg_checks_the_settings():
    with pytest.raises(SettingsError, match=r"Did you mean output\.path"):
        settings_of(StatusSettings, "doc", ["output.path=a", "output.pth=b", "--cfg"])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_module_and_a_configuration(command):
    assert importlib.import_module(f"jobs.{command}").__doc__
    assert (config_folder() / f"{command}.yaml").is_file()


def test_the_script_runs_a_command(tmp_path):
    done = run_job("batch", "conf=fake", "input.path=a", "output.path=b", "--cfg", module="jobs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["backend"]["name"] == "fake"
    done = run_job("batch", "input.pth=a", module="jobs", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")


def test_the_script_lists_the_commands(monkeypatch, capsys):
    for words in ([], ["--help"]):
        monkeypatch.setattr(sys, "argv", ["hfray", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        shown = capsys.readouterr().out
        assert all(f"\n  {command}" in shown for command in COMMANDS)


def test_the_script_refuses_an_unknown_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hfray", "bach"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "bach: there is no such command" in capsys.readouterr().err


def test_the_package_installs_the_script():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["hfray"].partition(":")
    assert getattr(importlib.import_module(module), name) is main
