"""From token ids to text while they arrive: whole characters only, cut before the first stop string."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

from hfray.engines.base import Tokenizer

# Some tokenizers (SentencePiece) drop a leading space when they decode. Decoding the completion after a few prompt
# tokens keeps the space. transformers' pipelines decode the whole prompt for the same reason.
CONTEXT_TOKENS = 4
WINDOW_TOKENS = 16  # tokens that are decoded again with each new token before the window moves
LONGEST_CHARACTER = 4  # bytes, so tokens at most
UNFINISHED = "\ufffd"  # how byte-level tokenizers decode a part of a UTF-8 character

_pieces: WeakKeyDictionary[Tokenizer, dict[int, str]] = WeakKeyDictionary()  # the text of single tokens, by tokenizer


class CompletionText:
    """The text of one completion.

    With many rows, decoding takes as long as a GPU step. So `push` decodes only for a stream, or if a token may
    complete a stop string.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt_ids: Sequence[int], stop_strings: Sequence[str] = (), stream: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._context, self._context_text = _whole_end(tokenizer, prompt_ids)
        self._stops = tuple(stop_strings)
        self._holdback = max(map(len, self._stops), default=1) - 1
        self._stream = stream
        self._last_characters = _visible_ends(self._stops)
        self._decoded = ""  # all whole characters so far
        self._torn = False  # the last tokens end within a character and are not in `_decoded` yet
        self._start = 0  # first token of the decode window, counted over context and completion
        self._known = self._context_text  # the window's text so far
        self._sent = 0
        self.token_ids: list[int] = []
        self.stopped = False

    def push(self, token_ids: Sequence[int]) -> str:
        """Add tokens. Returns the text that is final now: it contains no beginning of a possible stop string."""
        self.token_ids.extend(token_ids)
        if self.stopped or not token_ids or not (self._stream or self._torn or self._may_stop(token_ids)):
            return ""
        self._decode_more()
        cut = self._first_stop()
        if cut is not None:
            self._decoded, self.stopped = self._decoded[:cut], True
            return self._send(len(self._decoded))
        return self._send(len(self._decoded) - self._holdback)

    def finish(self) -> str:
        """The rest of the stream's text, after the last token."""
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
        window = (self._context + self.token_ids)[self._start :]
        now = self._tokenizer.decode(window)
        self._torn = now.endswith(UNFINISHED)
        if self._torn or len(now) <= len(self._known):
            return
        self._decoded += now[len(self._known) :]
        self._known = now
        if len(window) > WINDOW_TOKENS:
            end, self._known = _whole_end(self._tokenizer, window)
            self._start += len(window) - len(end)

    def _may_stop(self, token_ids: Sequence[int]) -> bool:
        """Whether a stop string may end in these tokens."""
        if not self._stops:
            return False
        if self._last_characters is None:
            return True
        known = _pieces.setdefault(self._tokenizer, {})
        for token in token_ids:
            if token not in known:
                known[token] = self._tokenizer.decode([token])
            if not self._last_characters.isdisjoint(known[token]):
                return True
        return False

    def _first_stop(self) -> int | None:
        start = max(0, self._sent - self._holdback)
        cuts = [cut for stop in self._stops if (cut := self._decoded.find(stop, start)) >= 0]
        return min(cuts, default=None)

    def _send(self, until: int) -> str:
        delta = self._decoded[self._sent : max(self._sent, until)]
        self._sent += len(delta)
        return delta


def _whole_end(tokenizer: Tokenizer, token_ids: Sequence[int]) -> tuple[list[int], str]:
    """The last few tokens and their text; more tokens if the text would begin within a character.

    A tokenizer with byte fallback (Llama's, Gemma's) decodes a whole run of bytes to nothing if one character in it is
    incomplete.
    """
    end, text = [], ""
    for count in range(CONTEXT_TOKENS, CONTEXT_TOKENS + LONGEST_CHARACTER):
        end = list(token_ids[-count:])
        text = tokenizer.decode(end)
        if not text.startswith(UNFINISHED):
            break
    return end, text


def _visible_ends(stops: Sequence[str]) -> frozenset[str] | None:
    """The last characters of the stop strings; None if a token decoded alone may hide one of them.

    Some tokenizers drop a leading space, and a character of several bytes may be spread over several tokens.
    """
    ends = frozenset(stop[-1] for stop in stops)
    return ends if all(end.isascii() and end != " " for end in ends) else None
