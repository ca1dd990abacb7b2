"""The files that release and CI rely on: pyproject, constraints, hooks, workflows, changelog."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OWN_ENVIRONMENT = {"gpu", "load"}  # extras that are not part of the development environment

# The first release without the vulnerabilities that pyproject.toml names.
FLOORS = {"jinja2": "3.1.6", "langchain-core": "1.2.22", "filelock": "3.20.3"}


def direct_dependencies() -> list[Requirement]:
    lines = list(PROJECT["dependencies"])
    for extra, more in PROJECT["optional-dependencies"].items():
        lines += more if extra not in OWN_ENVIRONMENT else []
    return [r for r in map(Requirement, lines) if r.name != PROJECT["name"]]


def constraints() -> dict[str, str]:
    return pinned_in((ROOT / "constraints.txt").read_text())


def pinned_in(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    pairs = [line.split("==") for line in lines]
    assert all(len(pair) == 2 for pair in pairs), "only NAME==VERSION: no index address, no path, no range"
    return {canonicalize_name(name): version for name, version in pairs}


def test_constraints_name_every_direct_dependency():
    pinned = constraints()
    missing = [r.name for r in direct_dependencies() if canonicalize_name(r.name) not in pinned]
    assert missing == []


def test_constraints_satisfy_pyproject():
    pinned = constraints()
    wrong = [str(r) for r in direct_dependencies() if pinned[canonicalize_name(r.name)] not in r.specifier]
    assert wrong == []


def test_one_extra_brings_all_that_a_gpu_worker_runs():
    """vLLM 0.32 requires transformers from 5.16.1 and below 5.20."""
    extras = PROJECT["optional-dependencies"]
    parts = {part for r in map(Requirement, extras["gpu"]) for part in (r.extras or {r.name})}
    assert {"transformers", "serve", "vllm"} <= parts
    transformers = next(r for r in map(Requirement, extras["transformers"]) if r.name == "transformers")
    assert all(version in transformers.specifier for version in ("5.5.4", "5.16.1", "5.19.0"))
    pinned = pinned_in((ROOT / "constraints-gpu.txt").read_text())
    needed = [r for part in parts - {"vllm"} for r in map(Requirement, extras[part])]
    needed += [r for r in map(Requirement, [*PROJECT["dependencies"], *extras["gpu"]]) if r.name != PROJECT["name"]]
    assert [str(r) for r in needed if pinned[canonicalize_name(r.name)] not in r.specifier] == []


def test_constraints_hold_public_versions_only():
    local = [name for name, version in constraints().items() if Version(version).local]
    assert local == []
    assert canonicalize_name(PROJECT["name"]) not in constraints()


def test_freeze_lists_public_versions_of_everything_but_hfray():
    """The output of `make constraints` in the environment of this test."""
    command = [sys.executable, ROOT / ".ci" / "freeze.py"]
    found = pinned_in(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert "pytest" in found
    assert found.keys().isdisjoint({"hfray", "pip", "setuptools"})
    assert [name for name, version in found.items() if Version(version).local] == []


def test_floors_exclude_known_vulnerabilities():
    core = {canonicalize_name(r.name): r for r in map(Requirement, PROJECT["dependencies"])}
    for name, floor in FLOORS.items():
        assert floor in core[name].specifier
        below = re.sub(r"\d+$", lambda m: str(int(m[0]) - 1), floor)
        assert below not in core[name].specifier, name


def test_changelog_has_the_version():
    versions = re.findall(r"^## \[(\d[\w.]*)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert versions[0] == PROJECT["version"]
    assert [Version(v) for v in versions] == sorted(map(Version, versions), reverse=True)


def test_the_wheel_ships_type_hints_and_settings():
    assert (ROOT / "hfray" / "py.typed").is_file()  # inside the package folder, so hatchling takes it along
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {"hfray", "jobs"} <= set(wheel["packages"])
    assert wheel["force-include"] == {"conf": "hfray/conf"}


def test_hooks_call_the_projects_own_tools():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"] == "local"  # no second version of a tool
    tools = {hook["entry"].split()[0] for hook in repo["hooks"]}
    assert tools == {f".venv/bin/{tool}" for tool in ("ruff", "lint-imports", "pyright")}


def test_the_workflow_runs_what_ci_runs():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = [step.get("run") for step in workflow["jobs"]["ci"]["steps"]]
    assert steps[-1] == "bash .ci/run"
    assert workflow["permissions"] == {"contents": "read"}


def test_ci_checks_the_style_first_and_runs_the_tests_last():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    steps = [line for line in lines if line.startswith("make ")]
    assert steps[0] == "make lint"
    assert steps[-1] == lines[-1] == "make test"  # pytest's closing line ends the output


@pytest.mark.parametrize("script", ["run", "audit"])
def test_ci_scripts_are_executable_bash(script):
    path = ROOT / ".ci" / script
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", path], check=True)


def test_make_help_lists_every_target():
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.M)[1].split()
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^  make ([\w-]+)", shown, re.M) == sorted(phony, key=phony.index)
    for target in ("install", "demo", "quick", "test", "lint"):
        assert target in phony
