"""Which beginnings of prompts a prefix cache holds: bookkeeping beside OpenVINO GenAI's, which does not tell."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

BLOCK = 32  # tokens; the cache keeps and finds whole blocks
DEFAULT_TOKENS = 1 << 20  # where nothing tells how many a cache holds


class PrefixIndex:
    """Blocks of tokens by all that stands before them, the least recently used forgotten first.

    Args:
        tokens: how many the cache holds.
    """

    def __init__(self, tokens: int) -> None:
        self._most = max(1, tokens // BLOCK)
        self._known: OrderedDict[int, None] = OrderedDict()

    def add(self, prompt_ids: Sequence[int]) -> int:
        """Take a prompt in; returns how many of its tokens the cache has from earlier ones."""
        ids = np.asarray(prompt_ids, dtype=np.int32)
        found, searching, chain = 0, True, 0
        for start in range(0, len(ids) - BLOCK + 1, BLOCK):
            chain = hash((chain, ids[start : start + BLOCK].tobytes()))
            searching = searching and chain in self._known
            found += BLOCK * searching
            self._known[chain] = None
            self._known.move_to_end(chain)
        while len(self._known) > self._most:
            self._known.popitem(last=False)
        return min(found, max(0, len(ids) - 1))  # the last token is always computed: its logits are wanted
