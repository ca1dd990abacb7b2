"""Equal prompts: keys, leaders and stored completions."""

from __future__ import annotations

from hfray.completion import Completion, Prompt
from hfray.inference.dedup import Dedup, dedup_key
from hfray.params import GenerationParams

GREEDY = GenerationParams(temperature=0)


def test_keys_are_equal_for_equal_prompts_and_parameters_only():
    key = dedup_key(Prompt("a"), GREEDY)
    assert key == dedup_key(Prompt("a"), GenerationParams(temperature=0))
    others = [
        dedup_key(Prompt("b"), GREEDY),
        dedup_key(Prompt("a", special_tokens_in_text=True), GREEDY),
        dedup_key(Prompt("a"), GenerationParams(temperature=0, max_new_tokens=3)),
    ]
    assert len({key, *others}) == 4
    assert dedup_key(Prompt("lone \ud800"), GREEDY)


def test_the_first_sequence_leads_until_it_finishes():
    dedup = Dedup()
    assert dedup.leader(b"key", "first") == "first"
    assert dedup.leader(b"key", "second") == "first"
    dedup.finish(b"key")
    assert dedup.leader(b"key", "third") == "third"
    assert dedup.completion(b"key") is None


def test_good_completions_are_stored_and_failed_ones_are_not():
    dedup = Dedup()
    good = Completion("text", "stop")
    dedup.finish(b"good", good)
    dedup.finish(b"bad", Completion(error="refused"))
    assert dedup.completion(b"good") is good
    assert dedup.completion(b"bad") is None


def test_the_least_recently_used_completions_are_dropped():
    dedup = Dedup(max_characters=10, max_count=3)
    for key in (b"1", b"2", b"3"):
        dedup.finish(key, Completion("abc", "stop"))
    assert dedup.completion(b"1") is not None
    dedup.finish(b"4", Completion("d", "stop"))
    assert [key for key in (b"1", b"2", b"3", b"4") if dedup.completion(key)] == [b"1", b"3", b"4"]
    dedup.finish(b"5", Completion("e" * 9, "stop"))
    assert [key for key in (b"1", b"3", b"4", b"5") if dedup.completion(key)] == [b"4", b"5"]
