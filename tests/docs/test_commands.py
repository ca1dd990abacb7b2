"""The commands on the pages: bash runs the marked blocks unchanged, and the settings of all other commands compose."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.markdown import PAGES, ROOT, blocks, job_commands

RUN = [page for page in PAGES if any(block.run for block in blocks(page, "bash"))]
SHOWN = [page for page in PAGES if any("python -m jobs." in block.text for block in blocks(page, "bash"))]


class ComposedError(Exception):
    """Raised in place of running a job whose settings have been composed and checked."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.ray
@pytest.mark.timeout(900)  # a page runs several jobs, one after the other
@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_bash_runs_the_marked_blocks(page, tmp_path, shared_ray):
    """The README's commands start their own Ray, as a first user's do; those of other pages use one that runs."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = dict(os.environ) if page.name == "README.md" else shared_ray
    environment |= {"PATH": path, "PYTHONPATH": str(ROOT)}
    for block in blocks(page, "bash"):
        if block.run:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block.text],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=400,
                check=False,
            )
            assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", SHOWN, ids=name_of)
def test_every_job_command_composes(page, tmp_path, monkeypatch):
    for number, block in enumerate(blocks(page, "bash")):
        folder = tmp_path / str(number)
        folder.mkdir()
        for module, *arguments in job_commands(block.text, folder):
            compose(module, arguments, monkeypatch)


def compose(module: str, arguments: list[str], monkeypatch) -> None:
    """Compose and check the settings of `python -m MODULE ARGUMENTS`, without running the job."""
    command = importlib.import_module(module)
    settings_of = importlib.import_module("jobs.command").settings_of

    def stop(*args):
        settings_of(*args)
        raise ComposedError

    monkeypatch.setattr(command, "settings_of", stop)
    monkeypatch.setattr(sys, "argv", [module, *(word for word in arguments if word != "--cfg")])
    with pytest.raises(ComposedError):
        command.main()
    monkeypatch.undo()


def test_bash_splits_commands_as_users_type_them(tmp_path):
    text = "kubectl get pods\npython -m jobs.batch prompt.template='Summarize: {text}' \\\n    x=1  # a comment\n"
    assert job_commands(text, tmp_path) == [["jobs.batch", "prompt.template=Summarize: {text}", "x=1"]]


def test_a_submitted_command_is_the_one_after_the_dashes(tmp_path):
    text = "ray job submit --address http://HEAD:8265 -- python -m jobs.batch input.path=/abs/in\n"
    assert job_commands(text, tmp_path) == [["jobs.batch", "input.path=/abs/in"]]
