"""The counts, samples and error groups of an output folder."""

import numpy as np

from hfray.data.output import OutputFolder
from hfray.runs import contents
from hfray.runs.contents import Lengths, count_rows, group_name, read_contents, run_of
from tests.folders import row, write_part


def test_lengths_are_an_exact_distribution():
    lengths = Lengths()
    assert (lengths.number, lengths.mean, lengths.longest, lengths.quantile(0.5)) == (0, 0, 0, 0)
    lengths.add(np.array([1, 2, 2]))
    lengths.add(np.array([5]))
    lengths.add(np.array([0]))
    assert (lengths.number, lengths.total, lengths.mean, lengths.longest) == (5, 10, 2.0, 5)
    assert [lengths.quantile(share) for share in (0.2, 0.5, 0.95)] == [0, 2, 5]
    counts, edges = lengths.histogram(bins=3)
    assert (counts.tolist(), edges.tolist()) == ([2, 2, 1], [0, 2, 4, 6])


def test_a_folder_of_two_runs(tmp_path):
    write_part(tmp_path, "aaaa", 0, [row(n) for n in range(4)])
    write_part(tmp_path, "bbbb", 0, [row(4, error="bad 17"), row(5, error="bad 18"), row(6, "one two three")])
    output = OutputFolder(str(tmp_path))
    found = read_contents(output, samples=3)
    assert (found.rows, found.failed, found.parts) == (7, 2, 2)
    assert found.rows_by_run == {"aaaa": 4, "bbbb": 3}
    assert found.failed_by_run == {"aaaa": 0, "bbbb": 2}
    assert found.tokens_by_run == {"aaaa": 8, "bbbb": 3}
    assert found.finish_reasons == {"stop": 5, "error": 2}
    assert found.generated_tokens.total == 11
    assert found.prompt_tokens.number == 5
    (group,) = found.largest_errors(10)
    assert (group.count, group.message, group.row_id, group.prompt) == (2, "bad 17", "t.jsonl:4", "Question 4?")
    assert len({sample["row_id"] for sample in found.samples}) == 3
    assert found.samples == read_contents(output, samples=3).samples
    assert count_rows(output) == {"aaaa": 4, "bbbb": 3}


def test_the_number_of_error_groups_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "MAX_ERROR_GROUPS", 2)
    write_part(tmp_path, "aaaa", 0, [row(n, error=f"error {letter}") for n, letter in enumerate("abcda")])
    found = read_contents(OutputFolder(str(tmp_path)))
    assert {group.message: group.count for group in found.errors.values()} == {
        "error a": 2,
        "error b": 1,
        "other errors": 2,
    }


def test_names_of_groups_and_runs():
    assert group_name("column 'a b' has 3.5 of 17") == group_name('column "c" has 1 of 2') == "column '…' has # of #"
    assert run_of("some/folder/part-ab12-00003.parquet") == "ab12"
    assert run_of("some/folder/other.parquet") == ""
