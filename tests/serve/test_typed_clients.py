"""Typed answers through unchanged clients: openai's `parse` and LangChain's `with_structured_output`."""

from __future__ import annotations

import asyncio
import enum

import httpx
import openai
import pydantic
import pytest
from langchain_openai import ChatOpenAI

from hfray.serve.api import build_api
from tests.serve.test_api import make

LIMITS = {"max_tokens": 300}


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


class Review(pydantic.BaseModel):
    """A review of a restaurant."""

    mood: Mood
    stars: int = pydantic.Field(ge=1, le=5)
    topics: list[str]
    name: str | None


@pytest.fixture(scope="module")
def transport():
    return httpx.ASGITransport(build_api(make()))


def http(transport) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")


def test_openais_parse(transport):
    async def ask() -> Review:
        async with http(transport) as client:
            api = openai.AsyncOpenAI(api_key="none", base_url="http://127.0.0.1/v1", http_client=client, max_retries=0)
            answer = await api.chat.completions.parse(
                model="fake-model", messages=[{"role": "user", "content": "x"}], response_format=Review, **LIMITS
            )
            return answer.choices[0].message.parsed

    review = asyncio.run(ask())
    assert isinstance(review, Review)
    assert review.stars in range(1, 6)


def test_langchains_structured_output(transport):
    async def ask() -> Review:
        async with http(transport) as client:
            chat = ChatOpenAI(
                model="fake-model",
                api_key="none",
                base_url="http://127.0.0.1/v1",
                http_async_client=client,
                max_retries=0,
                **LIMITS,
            )
            return await chat.with_structured_output(Review, method="json_schema").ainvoke("x")

    assert isinstance(asyncio.run(ask()), Review)


def test_a_stream_ends_with_the_whole_json(transport):
    async def ask() -> Review | None:
        async with http(transport) as client:
            api = openai.AsyncOpenAI(api_key="none", base_url="http://127.0.0.1/v1", http_client=client, max_retries=0)
            async with api.chat.completions.stream(
                model="fake-model", messages=[{"role": "user", "content": "x"}], response_format=Review, **LIMITS
            ) as stream:
                return (await stream.get_final_completion()).choices[0].message.parsed

    assert isinstance(asyncio.run(ask()), Review)
