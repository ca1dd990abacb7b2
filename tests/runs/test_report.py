"""The report of a run: its counts, its escaping, and a real browser that opens it."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hfray.batch.job import run_batch
from hfray.data.output import OutputFolder
from hfray.errors import ExitCode
from hfray.runs.contents import Lengths, count_rows, group_name, read_contents
from hfray.runs.history import course, load_runs, stage_seconds, tail_seconds
from hfray.runs.report import flat, report_page, shorten, top_series, write_report
from hfray.runs.status import describe, read_status
from hfray.runs.words import cut
from tests.conftest import batch_settings
from tests.folders import GONE, row, write_part, write_run, write_settings
from tests.processes import WAIT_SECONDS

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
EVIL = "<script>document.title = 'pwned'</script><img src=x onerror=\"document.title = 'pwned'\"></pre></article>"


@pytest.fixture
def resumed(tmp_path):
    """60 rows of a killed run, and 40 rows of the run that resumed it; 5 of these failed."""
    write_part(tmp_path, "aaaa", 0, [row(n) for n in range(60)])
    rows = [row(n, EVIL if n == 70 else "two words") for n in range(60, 95)]
    rows += [row(n, error=f"t.jsonl, line {n + 1}: is not JSON") for n in range(95, 99)] + [row(99, error="too long")]
    write_part(tmp_path, "bbbb", 0, rows)
    write_run(tmp_path, "aaaa", 100, ended=False, ago=1000, pid=GONE)
    write_run(tmp_path, "bbbb", 100, before=60)
    secrets = {"source": "org/model", "kwargs": {"token": "s3cret", "use_cache": True}}
    write_settings(tmp_path, model=secrets, generation={"max_new_tokens": 24}, cost={"per_worker_hour": 3.6})
    return tmp_path


# --- lengths ---------------------------------------------------------------------------------------------------


def test_lengths_are_exact():
    values = np.random.default_rng(3).integers(0, 5000, 10_000)
    lengths = Lengths()
    for piece in np.array_split(values, 7):
        lengths.add(piece)
    assert (lengths.number, lengths.total, lengths.longest) == (10_000, values.sum(), values.max())
    for share in (0.01, 0.5, 0.95, 1.0):
        assert lengths.quantile(share) == np.quantile(values, share, method="inverted_cdf")
    counts, edges = lengths.histogram(40)
    assert counts.sum() == 10_000
    assert len(counts) <= 40
    assert counts.tolist() == np.histogram(values, edges)[0].tolist()


def test_lengths_of_nothing_and_of_one_value():
    lengths = Lengths()
    assert (lengths.mean, lengths.longest, lengths.quantile(0.5), lengths.histogram()[0].sum()) == (0.0, 0, 0, 0)
    lengths.add(np.array([7, 7, 7]))
    assert lengths.histogram()[0].tolist() == [3]


# --- contents --------------------------------------------------------------------------------------------------


def test_contents_cover_every_run(resumed):
    contents = read_contents(OutputFolder(str(resumed)), samples=30)
    assert (contents.rows, contents.failed, contents.parts) == (100, 5, 2)
    assert contents.rows_by_run == {"aaaa": 60, "bbbb": 40}
    assert contents.failed_by_run["bbbb"] == 5
    assert contents.finish_reasons == {"stop": 95, "error": 5}
    assert contents.prompt_tokens.number == 95
    assert len({sample["row_id"] for sample in contents.samples}) == 30
    assert contents.samples == read_contents(OutputFolder(str(resumed)), samples=30).samples
    assert count_rows(OutputFolder(str(resumed))) == {"aaaa": 60, "bbbb": 40}


def test_errors_are_grouped_with_an_example(resumed):
    contents = read_contents(OutputFolder(str(resumed)))
    first, second = contents.largest_errors(10)
    assert (first.count, first.row_id, first.prompt) == (4, "t.jsonl:95", "Question 95?")
    assert first.message == "t.jsonl, line 96: is not JSON"
    assert (second.count, second.message) == (1, "too long")
    assert group_name("column 'a' is null") == group_name("column 'b' is null") != group_name("column 'a' is missing")


def test_error_groups_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("hfray.runs.contents.MAX_ERROR_GROUPS", 3)
    kinds = ["a", "b", "c", "d", "e"]
    write_part(tmp_path, "aaaa", 0, [row(n, error=f"kind {kinds[n % 5]}") for n in range(50)])
    contents = read_contents(OutputFolder(str(tmp_path)))
    assert len(contents.errors) == 4
    assert sum(group.count for group in contents.errors.values()) == 50
    assert contents.errors[""].message == "other errors"


# --- history ---------------------------------------------------------------------------------------------------


def test_the_history_describes_the_killed_and_the_resumed_run(resumed):
    contents = read_contents(OutputFolder(str(resumed)))
    folder = OutputFolder(str(resumed))
    killed, second = load_runs(folder, contents.rows_by_run, contents.tokens_by_run, contents.failed_by_run)
    assert (killed.state, killed.rows, killed.failed) == ("stopped", 60, 0)
    assert (second.state, second.rows, second.failed) == ("finished", 40, 5)
    assert killed.seconds == pytest.approx(60, abs=1)  # until its last sign of life
    assert killed.generating_seconds == pytest.approx(48, abs=1)
    assert "stopped without a message" in killed.message
    over = course([killed, second])
    times, breaks = over.times, over.breaks
    assert len(breaks) == 1
    assert times == sorted(times)
    assert times[-1] == pytest.approx(100, abs=1)
    assert over.rows[0] == pytest.approx(2, abs=0.2)
    assert set(over.occupancy) == {50.0}
    stages = dict(stage_seconds([killed, second]))
    assert sum(stages.values()) == pytest.approx(120, abs=1)
    assert stages["starting Ray"] == pytest.approx(8, abs=0.5)
    _, share = tail_seconds([killed, second])
    assert 0 <= share < 0.2


def test_a_run_killed_while_it_starts_spends_its_time_there(tmp_path):
    record = write_run(tmp_path, "aaaa", 100, ended=False, pid=GONE)
    timeline = {name: at for name, at in record["timeline"].items() if name in ("command", "checked")}
    write_run(tmp_path, "aaaa", 100, ended=False, pid=GONE, timeline=timeline)
    (run,) = load_runs(OutputFolder(str(tmp_path)), *[read_contents(OutputFolder(str(tmp_path))).rows_by_run] * 3)
    assert dict(stage_seconds([run])) == {
        "checking settings and input": pytest.approx(1, abs=0.5),
        "starting Ray": pytest.approx(59, abs=1),
    }


# --- the page --------------------------------------------------------------------------------------------------


def test_the_page_is_self_contained_and_escaped(resumed):
    page = report_page(OutputFolder(str(resumed)))
    assert "<script>document.title" not in page
    assert "onerror=" not in page.replace("onerror=&#34;", "")
    assert page.count("<script>") == 1
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//""", page)
    assert set(re.findall(r"https?://[^\"' <]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "s3cret" not in page
    assert "max_new_tokens" in page
    assert "stopped without a message" in page
    assert "100</b>" in page
    assert page.count("<svg") == 7
    assert not re.search(r"#0102[0-9a-f]{2}", page)  # every colour became a variable
    assert "worker hours at 3.6" in page


def test_a_chart_shows_every_pool_and_sums_up_the_smallest():
    pools = {f"pool{n}": [float(n), float(n)] for n in range(9)}
    assert top_series({"a": [1.0, 2.0], "b": [5.0, 5.0]}) == {"b": [5.0, 5.0], "a": [1.0, 2.0]}
    assert list(top_series(pools)) == ["pool8", "pool7", "pool6", "pool5", "pool4", "others"]
    assert top_series(pools)["others"] == [6.0, 6.0]


@pytest.mark.parametrize(("tiles", "columns"), [(4, 4), (6, 6), (7, 4), (8, 4), (9, 5)])
def test_the_tiles_of_the_headline_fill_their_rows(tiles, columns, resumed, monkeypatch):
    """Seven tiles used to be six in a row and one alone in the next."""
    monkeypatch.setattr("hfray.runs.report.headline", lambda *_: [("1", "name", "remark")] * tiles)
    assert f'<section class="figures" style="--columns: {columns}">' in report_page(OutputFolder(str(resumed)))


def test_a_folder_with_nothing_in_it_has_a_page(tmp_path):
    (tmp_path / "_hfray").mkdir()
    path = write_report(OutputFolder(str(tmp_path)))
    text = Path(path).read_text()
    assert "No rows are written yet" in text
    assert "This folder has no record of a run" in text


def test_samples_are_cut_to_a_size():
    samples = [row(n, "x" * 100_000, prompt="y" * 100_000) for n in range(500)]
    kept = shorten(samples)
    assert 50 < len(kept) < 500
    assert sum(len(s["prompt"]) + len(s["generated_text"]) for s in kept) < 2_000_000
    assert "96,000 characters left out" in kept[0]["generated_text"]
    assert cut("short") == "short"


def test_settings_are_flat_and_secrets_hidden():
    settings = {"a": {"b": 1, "api_key": "k", "max_new_tokens": 3}, "c": None, "d": True, "e": {}}
    expected = [
        ("a.b", "1"),
        ("a.api_key", "•••"),
        ("a.max_new_tokens", "3"),
        ("c", "null"),
        ("d", "true"),
        ("e", "{}"),
    ]
    assert flat(settings) == expected


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here to open the page with")
def test_a_browser_opens_the_page(resumed, tmp_path):
    path = write_report(OutputFolder(str(resumed)))
    flags = "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update"
    flags += f" --disable-sync --no-first-run --user-data-dir={tmp_path}/profile --dump-dom"
    command = [CHROMIUM, *flags.split(), f"file://{path}"]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    title = re.search(r"<title>(.*?)</title>", dom).group(1)
    assert title.endswith("hfray report")
    assert "100 of 100 shown" in dom  # its script ran


@pytest.mark.ray
def test_the_page_of_a_run_that_was_killed_and_resumed(shared_ray, tmp_path):
    """The driver of a real job is killed and the run resumes. Before and after: its status; at the end: the page."""
    rows = "".join(f'{{"question": "Is {n} even?"}}\n' for n in range(900))
    (tmp_path / "q.jsonl").write_text(rows + "no json\n")
    out = tmp_path / "out"
    job = ["conf=fake", f"input.path={tmp_path}/q.jsonl", f"output.path={out}", "output.flush_seconds=1"]
    slow = ["backend.step_seconds=0.2", "backend.tokens_per_step=4", "backend.batch_size=64"]
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.batch", *job, *slow],
        env=shared_ray,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + WAIT_SECONDS
        while not list(out.glob("part-*.parquet")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.2)
        assert describe(read_status(str(out)))[0].startswith("running: ")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    status = read_status(str(out))
    assert (status.state, status.runs) == ("stopped", 1)
    assert 0 < status.rows_written < 901
    assert run_batch(batch_settings(*job, "errors.max_fraction=0.1")).exit_code == ExitCode.OK
    state, *lines = describe(read_status(str(out)))
    assert state == "finished"
    assert lines[0].startswith("901 of 901 rows (100.0%), 1 failed")
    assert any("2 runs so far" in line for line in lines)
    page = (out / "_hfray" / "report.html").read_text()
    assert "stopped without a message" in page
    assert "line 901: is not JSON" in page
