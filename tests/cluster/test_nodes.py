"""Paths of submitted jobs, without Ray."""

from dataclasses import replace

import pytest

from hfray.cluster.nodes import check_submitted_paths, prepare_models
from hfray.cluster.pools import Pool
from hfray.config.batch import BatchSettings, InputSettings, OutputSettings
from hfray.errors import SettingsError
from tests.conftest import batch_settings

SETTINGS = batch_settings("conf=fake", "input.path=-", "output.path=-")


@pytest.fixture
def submitted(monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")


def settings(path: str | list[str], output: str) -> BatchSettings:
    return replace(SETTINGS, input=InputSettings(path=path), output=OutputSettings(path=output))


def test_a_job_that_is_not_submitted_may_use_relative_paths(monkeypatch):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    check_submitted_paths(settings("in.jsonl", "out"))


@pytest.mark.parametrize(
    ("path", "output", "key"),
    [
        ("in.jsonl", "/out", "input.path=in.jsonl"),
        (["/a", "b"], "/out", "input.path=b"),
        ("/in", "out", "output.path=out"),
    ],
)
def test_a_submitted_job_needs_absolute_paths(submitted, path, output, key):
    with pytest.raises(SettingsError, match=rf"{key}: is a relative path.*{key.partition('=')[0]}=\$PWD/"):
        check_submitted_paths(settings(path, output))


def test_a_submitted_job_takes_absolute_paths_and_urls(submitted):
    check_submitted_paths(settings("s3://bucket/in", "~/out"))


def test_the_fake_engine_needs_no_model():
    pools = [Pool("", "workers", settings("/in", "/out"), threads=1, cpus=1, gpus=0)]
    assert prepare_models(None, pools) == (pools, {})
