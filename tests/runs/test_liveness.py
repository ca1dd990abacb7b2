"""A run is alive as long as its own process is, whatever happens to the clock."""

import dataclasses
import subprocess
import sys

import psutil
import pytest

from hfray.data.output import OutputFolder
from hfray.errors import SettingsError
from hfray.runs.liveness import ProcessMark
from hfray.runs.owner import Owner, read_owner
from tests.folders import GONE

ME = ProcessMark.of_this_process()


@pytest.mark.skipif(
    ME.birth is None, reason="this system does not tell when a process was born by a clock that is never set"
)
def test_a_changed_clock_does_not_make_a_run_look_dead():
    assert dataclasses.replace(ME, began=ME.began - 3600).lives()
    assert dataclasses.replace(ME, began=ME.began + 2).lives()
    assert not dataclasses.replace(ME, birth="another boot/1").lives()


def test_a_mark_without_a_start_time_of_the_process_is_compared_by_the_clock():
    assert dataclasses.replace(ME, birth=None).lives()
    assert not dataclasses.replace(ME, birth=None, began=5.0).lives()


def test_a_process_that_is_gone_or_a_zombie():
    assert not dataclasses.replace(ME, pid=GONE).lives()
    child = subprocess.Popen([sys.executable, "-c", ""])
    process = psutil.Process(child.pid)
    mark = ProcessMark(ME.host, child.pid, process.create_time())
    while process.status() != psutil.STATUS_ZOMBIE:
        pass
    assert not mark.lives()
    child.wait()


def test_the_owner_is_read_back(tmp_path):
    output = OutputFolder(str(tmp_path))
    assert read_owner(output) is None
    output.prepare()
    output.claim("aaaa", dataclasses.asdict(Owner.of_this_run("aaaa")))
    owner = read_owner(output)
    assert (owner.run_id, owner.is_here, owner.lives()) == ("aaaa", True, True)
    assert not dataclasses.replace(owner, host="elsewhere").is_here
    assert not dataclasses.replace(owner, namespace="of another container").is_here


@pytest.mark.parametrize("content", ["", "[]", "7", '{"pid": "many"}'])
def test_a_damaged_owner(tmp_path, content):
    (tmp_path / "_hfray").mkdir()
    (tmp_path / "_hfray/owner.json").write_text(content)
    with pytest.raises(SettingsError, match=r"output\.path=.*owner\.json.*delete the file"):
        read_owner(OutputFolder(str(tmp_path)))
