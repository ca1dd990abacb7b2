"""The buckets of lengths."""

from hfray.runs.buckets import BUCKETS, EDGES, EXACT, bucket_of, empty_buckets


def test_every_length_is_in_the_bucket_between_its_edges():
    for length in (*range(3000), 4095, 4096, 65535, 65536, 100_000, (1 << 20) - 1):
        bucket = bucket_of(length)
        assert EDGES[bucket] <= length < EDGES[bucket + 1]


def test_buckets_are_exact_for_short_lengths_and_fine_for_long_ones():
    assert [bucket_of(length) for length in range(EXACT)] == list(range(EXACT))
    widths = [(EDGES[i + 1] - EDGES[i]) / EDGES[i] for i in range(EXACT, BUCKETS)]
    assert max(widths) <= 1 / 32


def test_the_longest_lengths_share_a_bucket():
    assert bucket_of(1 << 30) == BUCKETS - 1
    assert len(empty_buckets()) == BUCKETS == len(EDGES) - 1
