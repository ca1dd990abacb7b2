"""An output folder that overlaps the input is refused before anything is read, written or deleted."""

from __future__ import annotations

import json

import pytest

from hfray.batch.overlap import check_overlap
from hfray.batch.preflight import prepare
from hfray.errors import SettingsError
from tests.conftest import batch_settings


@pytest.fixture
def folder(tmp_path):
    data = tmp_path / "d"
    data.mkdir()
    (data / "in.jsonl").write_text(json.dumps({"question": "q"}) + "\n")
    (tmp_path / "link").symlink_to(data)
    return tmp_path


OVERLAPPING = [("d", "d"), ("d", "d/answers"), ("d/in.jsonl", "d"), ("d", "."), ("link", "d"), ("d/", "link/answers")]
OVERLAPPING += [("d/in.jsonl", "d/in.jsonl"), ("d/*.jsonl", "d"), ("d/**/*.jsonl", "d/answers"), ("other,d", "d")]


@pytest.mark.parametrize(("source", "output"), OVERLAPPING)
@pytest.mark.parametrize("overwrite", ["true", "false"])
def test_overlapping_folders_are_refused_and_nothing_is_deleted(folder, source, output, overwrite):
    paths = ",".join(f"{folder}/{path}" for path in source.split(","))
    paths = f"[{paths}]" if "," in source else paths
    settings = batch_settings(
        "conf=fake", f"input.path={paths}", f"output.path={folder}/{output}", f"output.overwrite={overwrite}"
    )
    with pytest.raises(SettingsError, match=r"output\.path=.*overlaps input\.path="):
        prepare(settings)
    assert (folder / "d/in.jsonl").exists()
    assert not (folder / "d/_hfray").exists()


@pytest.mark.parametrize(
    ("source", "output"),
    [("d", "d2"), ("d/in.jsonl", "d/answers"), ("d/*.jsonl", "d/answers"), ("d", "answers")],
)
def test_folders_beside_each_other_are_fine(folder, source, output):
    check_overlap(batch_settings("conf=fake", f"input.path={folder}/{source}", f"output.path={folder}/{output}"))
