"""Forms of answers compiled by llguidance for one tokenizer: which tokens may come next.

One form is compiled once, however many requests have it; each request walks its own copy.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from hfray.errors import RequestError
from hfray.grammars import grammar_of, limits

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from hfray.engines.base import Request
    from hfray.response import ResponseFormat

KEPT_FORMS = 256  # compiled, the least recently used go first; rows with choices of their own have many


class Guides:
    """The guides of the requests in one engine.

    Args:
        make_tokenizer: makes llguidance's view of the engine's tokenizer, which takes up to a second.
    """

    def __init__(self, make_tokenizer: Callable[[], LLTokenizer]) -> None:
        self._make_tokenizer = make_tokenizer
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[ResponseFormat, LLMatcher] = OrderedDict()
        self._running: dict[int, LLMatcher] = {}
        self._lock, self._compiling = threading.Lock(), threading.Lock()

    @property
    def tokenizer(self) -> LLTokenizer:
        """llguidance's view of the tokenizer."""
        if self._tokenizer is None:
            self._tokenizer = self._make_tokenizer()
        return self._tokenizer

    def prepare(self, form: ResponseFormat) -> None:
        """Compile a form. Thread-safe. Raises RequestError if it cannot be compiled within the limits."""
        self._of(form)

    def guide(self, request: Request) -> LLMatcher | None:
        """Where this request is in its form; None if it has none."""
        form = request.params.response
        if form is None:
            return None
        guide = self._running.get(request.id)
        if guide is None:
            guide = self._running[request.id] = self.start(form)
        return guide

    def start(self, form: ResponseFormat) -> LLMatcher:
        """A guide at the beginning of a form."""
        return self._of(form).deep_copy()

    def advance(self, request: Request, token: int) -> bool:
        """Follow a generated token; returns whether the answer is complete now.

        Raises:
            RequestError: the form costs more work per token than the limits allow.
        """
        guide = self.guide(request)
        if guide is None:
            return False
        guide.consume_token(token)
        if guide.is_error():
            raise RequestError(f"response: the answer cannot be held to its form: {guide.get_error()}")
        return guide.is_stopped()

    def forget(self, request_id: int) -> None:
        """Drop the guide of a request that has ended; unknown ids are ignored."""
        self._running.pop(request_id, None)

    def _of(self, form: ResponseFormat) -> LLMatcher:
        found = self._known(form)
        if found is not None:
            return found
        with self._compiling:
            found = self._known(form) or self._compile(form)
        with self._lock:
            self._compiled[form] = found
            while len(self._compiled) > KEPT_FORMS:
                self._compiled.popitem(last=False)
        return found

    def _known(self, form: ResponseFormat) -> LLMatcher | None:
        """The compiled form. Never waits for another form's compilation, so that the steps go on meanwhile."""
        with self._lock:
            found = self._compiled.get(form)
            if found is not None:
                self._compiled.move_to_end(form)
            return found

    def _compile(self, form: ResponseFormat) -> LLMatcher:
        from llguidance import LLMatcher

        found = LLMatcher(self.tokenizer, grammar_of(form), log_level=0, limits=limits())
        if found.is_error():
            raise RequestError(f"response: the {form.kind} cannot be compiled: {' '.join(found.get_error().split())}")
        return found


def allowed_tokens(mask: bytes) -> Iterable[int]:
    """The token ids of a bit mask, as `LLMatcher.compute_bitmask` gives it."""
    return (index * 8 + bit for index, byte in enumerate(mask) for bit in range(8) if byte >> bit & 1)
