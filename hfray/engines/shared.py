"""Equal prompts, generated once: a completion under way, or done not long ago, serves the others too."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hfray.engines.loop import Completion, Prompt
    from hfray.engines.params import GenerationParams

RECENT_CHARACTERS = 64 << 20  # of texts kept
RECENT_COUNT = 1 << 17


def share_key(prompt: Prompt, params: GenerationParams) -> Any:
    """Equal for prompts whose completions are equal: a row's seed comes from its prompt, so sampled ones are too."""
    text = prompt.text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=16).digest(), prompt.special_tokens_in_text, params


class RecentCompletions:
    """The completions of the last prompts by their keys, as many as fit. Not thread-safe."""

    def __init__(self, most_characters: int = RECENT_CHARACTERS, most: int = RECENT_COUNT) -> None:
        self._most_characters, self._most = most_characters, most
        self._kept: OrderedDict[Any, Completion] = OrderedDict()
        self._characters = 0

    def get(self, key: Any) -> Completion | None:
        """The completion of an equal prompt, without token ids and log-probabilities."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: Any, completion: Completion) -> None:
        """Keep a good completion, and let the oldest go."""
        self._kept[key] = completion
        self._characters += len(completion.text or "")
        while self._characters > self._most_characters or len(self._kept) > self._most:
            _, oldest = self._kept.popitem(last=False)
            self._characters -= len(oldest.text or "")
