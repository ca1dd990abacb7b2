"""Two output folders of one input: counts, joined rows and marked differences."""

import json
import random

import pytest
from markupsafe import Markup

from hfray.errors import SettingsError
from hfray.runs.about import About
from hfray.runs.compare import CompareSettings, PageOutput, compare
from hfray.runs.compare_page import differing_settings, page
from hfray.runs.textdiff import Parting, mark, parting
from jobs.compare import _lines
from tests.conftest import run_job
from tests.folders import row, write_part, write_run, write_settings


def settings(tmp_path, **changes) -> CompareSettings:
    folders = {"first": str(tmp_path / "a"), "second": str(tmp_path / "b")}
    return CompareSettings(**folders | {"output": PageOutput(path=str(tmp_path / "page.html"))} | changes)


@pytest.fixture
def two(tmp_path):
    """Two folders with rows 0 to 89 in common and 10 rows each of their own; 20 rows differ, 4 failed in one or both."""
    chance = random.Random(0)
    first = [row(n, f"the answer to {n} is {n} & more") for n in range(90)]
    second = [row(n, f"the answer to {n} is {n} & more" if n >= 20 else f"the answer to {n} was 5") for n in range(90)]
    for rows, failed in ((first, (30, 31)), (second, (31, 32, 33))):
        for n in failed:
            rows[n] = row(n, error="broken")
    first += [row(n) for n in range(90, 95)]
    second += [row(n) for n in range(95, 100)]
    chance.shuffle(second)
    write_part(tmp_path / "a", "aaaa", 0, first[:50])
    write_part(tmp_path / "a", "aaaa", 1, first[50:])
    write_part(tmp_path / "b", "bbbb", 0, second)
    write_run(tmp_path / "a", "aaaa", 95)
    write_run(tmp_path / "b", "bbbb", 95)
    write_settings(tmp_path / "a", {"backend.weight_format": "fp32", "task": "t"})
    write_settings(tmp_path / "b", {"backend.weight_format": "int8", "task": "t"})
    return tmp_path


def test_counts(two):
    result = compare(settings(two))
    assert (result.common, result.only_first, result.only_second) == (90, 5, 5)
    assert (result.same, result.differ) == (66, 20)
    assert (result.failed_first, result.failed_second, result.failed_both) == (1, 2, 1)
    assert (result.longer_first, result.longer_second) == (20, 0)
    assert len(result.partings) == 20
    assert {p.words for p in result.partings} == {4}
    assert len(result.pairs) == 20
    assert result.sides[0].speed[0] == pytest.approx(95 / 48, rel=0.05)


def test_a_sample_of_the_differing_rows(two, monkeypatch):
    monkeypatch.setattr("hfray.runs.compare.DIFFERING_READ", 7)
    result = compare(settings(two, samples=3))
    assert result.differ == 20
    assert len(result.partings) == 7
    assert len(result.pairs) == 3


def test_equal_folders(two):
    result = compare(settings(two, second=str(two / "a")))
    assert (result.same, result.differ, result.failed_both) == (93, 0, 2)
    assert "No answers differ" in page(settings(two), result)


def test_the_page(two):
    (evil,) = [row(3, "<script>alert(1)</script> was 5")]
    write_part(two / "b", "bbbb", 1, [evil | {"row_id": "x"}])
    write_part(two / "a", "aaaa", 2, [evil | {"row_id": "x", "generated_text": "<b>bold</b>"}])
    text = page(settings(two), compare(settings(two)))
    assert "66 of 87 answers are equal (75.9 %)" in text
    assert "alert(1)" in text
    assert "<script>alert" not in text
    assert "<b>bold" not in text
    assert "<del>" in text
    assert "<ins>" in text
    assert "fp32" in text
    assert "http://" not in text.replace("http://www.w3.org/", "")


def test_what_each_side_was_computed_in(two):
    for side, precisions in (("a", ["fp32"]), ("b", ["bf16", "fp32"])):
        about = two / side / "_hfray/run.json"
        about.write_text(json.dumps(json.loads(about.read_text()) | {"precisions": precisions}))
    result = compare(settings(two))
    assert [line.rpartition(", ")[2] for line in _lines(result)[-2:]] == [
        "computed in fp32",
        "computed in bf16 and fp32",
    ]
    row = '<tr><td>computed in</td><td class="number">fp32</td><td class="number">bf16 and fp32</td></tr>'
    assert row in page(settings(two), result)


@pytest.mark.model  # slow: three commands
def test_the_command(two):
    (two / "with space").mkdir()
    (two / "a").rename(two / "with space" / "it's, {a}")
    answer = run_job(two / "with space" / "it's, {a}", two / "b", f"output.path={two}/out.html", module="jobs.compare")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("66 of 86 answers are equal (76.7%)\n")
    assert (two / "out.html").read_text().startswith("<!doctype html>")
    answer = run_job(two / "b", two / "nothing", module="jobs.compare")
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: second=")
    assert run_job(two / "b", module="jobs.compare").stderr.startswith("error: second is not given")


def test_folders_without_common_rows(two):
    write_part(two / "c", "cccc", 0, [row(n) for n in range(500, 510)])
    with pytest.raises(SettingsError, match="no row_id in common"):
        compare(settings(two, second=str(two / "c")))


@pytest.mark.parametrize(
    ("one", "other", "characters", "words"),
    [("", "", 0, 0), ("same", "same", 4, 1), ("a b c", "a b d", 4, 2), ("a b", "a b c", 3, 2), ("x", "y", 0, 0)],
)
def test_the_first_difference_of_two_texts(one, other, characters, words):
    assert parting(one, other) == Parting(characters, words)


def test_marks_keep_every_character_and_escape_it():
    chance = random.Random(4)
    words = ["a", "b", "<i>", "&", " ", "\n", "é", "'"]
    for _ in range(50):
        one, other = ("".join(chance.choices(words, k=chance.randint(0, 30))) for _ in range(2))
        for text, marked in zip((one, other), mark(one, other), strict=True):
            assert isinstance(marked, Markup)
            bare = marked
            for tag in ("<del>", "</del>", "<ins>", "</ins>"):
                bare = Markup(bare.replace(Markup(tag), Markup("")))
            assert "<" not in bare
            assert bare.unescape() == text


def test_differing_settings():
    first, second = About(fingerprint={"a": 1, "b": 2}), About(fingerprint={"a": 1, "b": 3, "c": 4})
    assert differing_settings(first, second) == [("b", "2", "3"), ("c", "–", "4")]
    assert differing_settings(About(), About()) == []
