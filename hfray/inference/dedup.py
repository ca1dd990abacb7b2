"""Equal prompts, generated once: a completion under way, or done not long ago, serves the others too."""

from __future__ import annotations

import functools
import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hfray.completion import Completion, Prompt
    from hfray.params import GenerationParams


RECENT_CHARACTERS = 64 << 20  # of texts kept
RECENT_COUNT = 1 << 17


def share_key(prompt: Prompt, params: GenerationParams) -> bytes:
    """Equal for prompts whose completions are equal, as far as none is sampled."""
    text = prompt.text.encode("utf-8", "surrogatepass")
    kind = b"tokens in text" if prompt.special_tokens_in_text else b""
    return hashlib.blake2b(text, digest_size=16, key=_digest(params), person=kind).digest()


@functools.lru_cache(maxsize=64)
def _digest(params: GenerationParams) -> bytes:
    return hashlib.blake2b(repr(params).encode(), digest_size=16).digest()


class RecentCompletions:
    """The completions of the last prompts by their keys, as many as fit. Not thread-safe."""

    def __init__(self, most_characters: int = RECENT_CHARACTERS, most: int = RECENT_COUNT) -> None:
        self._most_characters, self._most = most_characters, most
        self._kept: OrderedDict[bytes, Completion] = OrderedDict()
        self._characters = 0

    def get(self, key: bytes) -> Completion | None:
        """The completion of an equal prompt, without token ids and log-probabilities."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: bytes, completion: Completion) -> None:
        """Keep a good completion, and let the oldest go."""
        self._kept[key] = completion
        self._characters += len(completion.text or "")
        while self._characters > self._most_characters or len(self._kept) > self._most:
            _, oldest = self._kept.popitem(last=False)
            self._characters -= len(oldest.text or "")
