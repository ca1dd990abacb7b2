"""The fingerprint covers what decides the text, and nothing else."""

import pytest

from hfray.errors import SettingsError
from hfray.runs.fingerprint import check_fingerprint, fingerprint, versions
from tests.conftest import batch_settings

BASE = ["input.path=/in.jsonl", "output.path=/out"]


@pytest.fixture(scope="module")
def plain() -> dict[str, object]:
    return fingerprint(batch_settings(*BASE))


def test_speed_and_the_place_of_the_output_do_not_count(plain):
    others = ["output.path=/elsewhere", "workers.size=3", "errors.max_fraction=1", "input.limit=5"]
    others += ["backend.batch_size=4", "backend.ov_config.NUM_STREAMS=2"]
    assert fingerprint(batch_settings(*BASE, *others)) == plain


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("backend.weight_format=int8", "backend.weight_format"),
        ("backend.ov_config.KV_CACHE_PRECISION=u8", "backend.ov_config.KV_CACHE_PRECISION"),
        ("model.precision=exact", "model.precision"),
        ("generation.max_new_tokens=7", "generation.max_new_tokens"),
        ("prompt.template={question}", "prompt.template"),
        ("model.source=/another", "model.source"),
        ("input.columns=[question]", "input.columns"),
    ],
)
def test_what_decides_the_text_is_named_when_it_changes(plain, override, key):
    mine, theirs = fingerprint(batch_settings(*BASE, override)), plain
    assert {name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)} == {key}
    with pytest.raises(SettingsError, match=rf"output\.path=/out: .*{key} was .* and is .*overwrite=true"):
        check_fingerprint(mine, theirs, "/out")
    check_fingerprint(mine, dict(mine), "/out")


def test_the_order_and_the_size_of_pools_do_not_count():
    pools = [
        "workers=[{name: a, backend: fake, size: 1}, {name: b, size: 2}]",
        "workers=[{name: b, size: 1}, {name: a, backend: fake, size: 4}]",
    ]
    first, second = (fingerprint(batch_settings(*BASE, pool)) for pool in pools)
    assert first == second
    assert len(first["engines"]) == 2


def test_versions_name_the_installed_packages():
    assert {"hfray", "ray", "pyarrow"} <= versions().keys()
