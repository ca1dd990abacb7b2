"""Tokens of texts and texts of tokens, as vLLM's `/tokenize` and `/detokenize`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, model_validator

from hfray.serve.errors import ApiError
from hfray.serve.protocol import Message
from hfray.serve.replica import Service

MAX_TOKEN = (1 << 31) - 1
Responses = dict[int | str, dict[str, Any]]


class TokenizeRequest(BaseModel):
    """A text, or the messages of a chat.

    `add_special_tokens` is true by default for a text, false for messages: the chat template writes them itself.
    """

    model_config = ConfigDict(strict=True)

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = Field(default=None, min_length=1)
    add_special_tokens: bool | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("send either prompt or messages")
        return self


class TokenizeResponse(BaseModel):
    """The tokens, their number, and the model's context length."""

    count: int
    max_model_len: int | None
    tokens: list[int]


class DetokenizeRequest(BaseModel):
    """Token ids of the model."""

    model_config = ConfigDict(strict=True)

    model: str | None = None
    tokens: list[int]


class DetokenizeResponse(BaseModel):
    """The text of the tokens."""

    prompt: str


def add_tokens(
    api: FastAPI, service: Service, responses: Responses, render_chat: Callable[[list[dict[str, str]]], str]
) -> None:
    """Add both paths.

    Args:
        render_chat: the prompt of messages. Raises ValueError.
    """
    engine = service.worker.loop.engine

    @api.post("/tokenize", responses=responses)
    async def tokenize(body: TokenizeRequest) -> TokenizeResponse:
        """The tokens of a text, or of a chat as the model gets it."""
        service.check_model(body.model)

        def encode() -> list[int]:
            if body.messages is None:
                special = body.add_special_tokens is not False
                return engine.tokenizer.encode(body.prompt or "", add_special_tokens=special)
            text = render_chat([message.plain() for message in body.messages])
            return engine.tokenizer.encode(text, add_special_tokens=bool(body.add_special_tokens))

        try:
            tokens = await asyncio.to_thread(encode)
        except ValueError as error:
            raise ApiError(400, str(error)) from error
        return TokenizeResponse(count=len(tokens), max_model_len=engine.context_length, tokens=tokens)

    @api.post("/detokenize", responses=responses)
    async def detokenize(body: DetokenizeRequest) -> DetokenizeResponse:
        """The text of token ids, special tokens left out."""
        service.check_model(body.model)
        if any(not 0 <= token <= MAX_TOKEN for token in body.tokens):
            raise ApiError(400, f"tokens: a token id is a number from 0 to {MAX_TOKEN}", param="tokens")
        try:
            text = await asyncio.to_thread(engine.tokenizer.decode, body.tokens)
        except Exception as error:  # a tokenizer refuses ids beyond its vocabulary with errors of its own
            raise ApiError(400, f"tokens: the tokenizer cannot decode them: {error}", param="tokens") from error
        return DetokenizeResponse(prompt=text)
