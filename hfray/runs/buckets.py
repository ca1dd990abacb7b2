"""Lengths of answers in buckets: small counters that workers can report every second, however long the answers are."""

from __future__ import annotations

SHARES = 32  # buckets in every doubling of the length
EXACT = 2 * SHARES  # shorter lengths have a bucket each
DOUBLINGS = 14  # lengths of 2**20 tokens and more share the last bucket
BUCKETS = EXACT + SHARES * DOUBLINGS


def bucket_of(length: int) -> int:
    """The bucket of a length in tokens."""
    if length < EXACT:
        return length
    shift = length.bit_length() - SHARES.bit_length()
    return min(BUCKETS - 1, SHARES * shift + (length >> shift))


def empty_buckets() -> list[int]:
    """A counter of every bucket, all zero."""
    return [0] * BUCKETS


# EDGES[i] is the shortest length in bucket i; EDGES[BUCKETS] ends the last bucket.
EDGES = (
    *range(EXACT),
    *((SHARES + share) << shift for shift in range(1, DOUBLINGS + 1) for share in range(SHARES)),
    EXACT << DOUBLINGS,
)
