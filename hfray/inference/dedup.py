"""Deduplication: equal greedy prompts are computed once.

The first prompt of its kind is the leader: the engine computes its sequence. Equal prompts that arrive meanwhile are
followers: they wait for the leader's completion. Equal prompts that arrive later get the stored completion.
"""

from __future__ import annotations

import functools
import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from hfray.completion import Completion, Prompt
    from hfray.params import GenerationParams

SequenceT = TypeVar("SequenceT")

RECENT_CHARACTERS = 64 << 20  # of stored completion texts
RECENT_COUNT = 1 << 17


def dedup_key(prompt: Prompt, params: GenerationParams) -> bytes:
    """The same for equal prompts with equal parameters. Greedy completions with the same key are equal."""
    text = prompt.text.encode("utf-8", "surrogatepass")
    kind = b"tokens in text" if prompt.special_tokens_in_text else b""
    return hashlib.blake2b(text, digest_size=16, key=_digest(params), person=kind).digest()


@functools.lru_cache(maxsize=64)
def _digest(params: GenerationParams) -> bytes:
    return hashlib.blake2b(repr(params).encode(), digest_size=16).digest()


class Dedup(Generic[SequenceT]):
    """The leaders that the engine computes now, and recent completions, both by key. Not thread-safe."""

    def __init__(self, max_characters: int = RECENT_CHARACTERS, max_count: int = RECENT_COUNT) -> None:
        self._max_characters, self._max_count = max_characters, max_count
        self._leaders: dict[bytes, SequenceT] = {}
        self._recent: OrderedDict[bytes, Completion] = OrderedDict()
        self._characters = 0

    def completion(self, key: bytes) -> Completion | None:
        """A recent completion, without token ids and log-probabilities."""
        found = self._recent.get(key)
        if found is not None:
            self._recent.move_to_end(key)
        return found

    def leader(self, key: bytes, sequence: SequenceT) -> SequenceT:
        """The sequence that computes the completion: one that is running, else `sequence`, now the leader."""
        return self._leaders.setdefault(key, sequence)

    def finish(self, key: bytes, completion: Completion | None = None) -> None:
        """Forget the leader. Store its completion unless there is none or it has an error."""
        self._leaders.pop(key, None)
        if completion is None or completion.error is not None:
            return
        self._recent[key] = completion
        self._characters += len(completion.text or "")
        while self._characters > self._max_characters or len(self._recent) > self._max_count:
            _, oldest = self._recent.popitem(last=False)
            self._characters -= len(oldest.text or "")
