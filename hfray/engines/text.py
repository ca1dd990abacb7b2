"""Token ids to text as they come: whole characters only, cut before the first stop string."""

from __future__ import annotations

from collections.abc import Sequence

from hfray.engines.base import Tokenizer

# Some tokenizers (SentencePiece) drop a leading space when they decode; a few prompt tokens before the completion
# keep it, as transformers' pipelines do by decoding the whole.
CONTEXT_TOKENS = 4
UNFINISHED = "\ufffd"  # what byte-level tokenizers decode a torn UTF-8 character to


class CompletionText:
    """The text of one completion.

    `push` costs nothing until it is needed: text is decoded token by token only for a stop string or a stream.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt_ids: Sequence[int], stop_strings: Sequence[str] = (), stream: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._context = list(prompt_ids[-CONTEXT_TOKENS:])
        self._context_text = tokenizer.decode(self._context)
        self._stops = tuple(stop_strings)
        self._holdback = max(map(len, self._stops), default=1) - 1
        self._incremental = bool(self._stops) or stream
        self._decoded = ""  # all whole characters so far
        self._prefix, self._read = 0, 0  # decode window: ids[prefix:read] is in _decoded already
        self._sent = 0
        self.token_ids: list[int] = []
        self.stopped = False

    def push(self, token_ids: Sequence[int]) -> str:
        """Add tokens; returns the text that is now certain (never part of a stop string to come)."""
        self.token_ids.extend(token_ids)
        if not self._incremental or self.stopped or not token_ids:
            return ""
        self._decode_more()
        cut = self._first_stop()
        if cut is not None:
            self._decoded, self.stopped = self._decoded[:cut], True
            return self._send(len(self._decoded))
        return self._send(len(self._decoded) - self._holdback)

    def finish(self) -> str:
        """The rest of the text for a stream, after the last token."""
        if not self.stopped:
            self._decoded = self._decode(self.token_ids)
            cut = self._first_stop()
            if cut is not None:
                self._decoded, self.stopped = self._decoded[:cut], True
        return self._send(len(self._decoded))

    @property
    def text(self) -> str:
        """The whole text; call after `finish`."""
        return self._decoded

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(self._context + token_ids)[len(self._context_text) :]

    def _decode_more(self) -> None:
        ids = self._context + self.token_ids
        offset = len(self._context)
        before = self._tokenizer.decode(ids[max(0, self._prefix + offset - CONTEXT_TOKENS) : self._read + offset])
        now = self._tokenizer.decode(ids[max(0, self._prefix + offset - CONTEXT_TOKENS) :])
        if len(now) > len(before) and not now.endswith(UNFINISHED):
            self._decoded += now[len(before) :]
            self._prefix, self._read = self._read, len(self.token_ids)

    def _first_stop(self) -> int | None:
        start = max(0, self._sent - self._holdback)
        cuts = [cut for stop in self._stops if (cut := self._decoded.find(stop, start)) >= 0]
        return min(cuts, default=None)

    def _send(self, until: int) -> str:
        delta = self._decoded[self._sent : max(self._sent, until)]
        self._sent += len(delta)
        return delta
