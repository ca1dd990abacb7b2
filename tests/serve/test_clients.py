"""Unchanged OpenAI and LangChain clients against the real 135M model."""

from __future__ import annotations

import asyncio
import dataclasses
import time

import httpx
import openai
import pytest
import transformers
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from prometheus_client.parser import text_string_to_metric_families

from hfray.completion import Prompt
from hfray.engines.load import load_engine
from hfray.inference.loop import EngineLoop
from hfray.params import GenerationParams
from tests.processes import WAIT_SECONDS, named
from tests.serving import serving
from tests.ties import assert_same_text_until_tie, assert_same_texts_until_ties

pytestmark = pytest.mark.server
KEY = "test-key"
QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def server(smollm2_ir):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HFRAY_TEST_KEYS", KEY)
        with serving("serve.api_keys=env:HFRAY_TEST_KEYS", "backend.kv_cache_gib=1", "model.precision=fp32") as running:
            yield running


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def model(client) -> str:
    return client.models.list().data[0].id


@pytest.fixture(scope="module")
def chat_ids(smollm2) -> list[int]:
    """Token ids of the question in the model's chat template."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    messages = [{"role": "user", "content": QUESTION}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_models(client, model):
    assert model == "SmolLM2-135M-Instruct.Q4_1"
    assert client.models.retrieve(model).id == model


def test_completion_is_what_the_engine_gives(client, model, smollm2, smollm2_settings, smollm2_ir):
    prompts = ["The capital of France is", "Two and two make"]
    model_settings = dataclasses.replace(smollm2_settings.model, precision="fp32")
    in_fp32 = dataclasses.replace(smollm2_settings, model=model_settings)
    full_length = {"extra_body": {"ignore_eos": True}}  # so that a near tie changes no length
    answer = client.completions.create(model=model, prompt=prompts, max_tokens=12, temperature=0, **full_length)
    loop = EngineLoop(load_engine(in_fp32, folder=smollm2_ir))
    params = GenerationParams(max_new_tokens=12, temperature=0, ignore_eos=True)
    expected = loop.generate([Prompt(prompt) for prompt in prompts], params)
    loop.close()
    texts = [choice.text for choice in answer.choices]
    assert_same_texts_until_ties(smollm2, prompts, texts, [completion.text for completion in expected])
    assert [choice.finish_reason for choice in answer.choices] == [c.finish_reason for c in expected]
    assert answer.usage.prompt_tokens == sum(c.num_prompt_tokens for c in expected)
    assert answer.usage.completion_tokens == sum(c.num_generated_tokens for c in expected)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_metrics_count_the_tokens_of_the_prefix_cache(server, client, model):
    """The engine runs in its own process and reports its counters."""
    for end in ("one", "two"):
        client.completions.create(model=model, prompt="The same long beginning. " * 20 + end, max_tokens=1)
    text = httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert sum(sample.value for sample in families["hfray_engine_prefix_tokens"].samples) > 64


def test_chat_and_its_stream(client, model, smollm2, chat_ids):
    messages = [{"role": "user", "content": QUESTION}]
    whole = client.chat.completions.create(model=model, messages=messages, max_tokens=24, temperature=0)
    assert "Paris" in whole.choices[0].message.content
    assert whole.choices[0].message.role == "assistant"
    stream = client.chat.completions.create(
        model=model,
        messages=messages,
        max_tokens=24,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert_same_text_until_tie(smollm2, chat_ids, text, whole.choices[0].message.content)
    assert len(chunks) > 5
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    if text == whole.choices[0].message.content:
        assert chunks[-1].usage == whole.usage


def test_finish_reasons(client, model):
    ask = client.chat.completions.create
    messages = [{"role": "user", "content": QUESTION}]
    cut = ask(model=model, messages=messages, max_completion_tokens=3, temperature=0)
    assert cut.choices[0].finish_reason == "length"
    assert cut.usage.completion_tokens == 3
    ended = ask(model=model, messages=messages, max_tokens=100, temperature=0)
    assert ended.choices[0].finish_reason == "stop"
    stopped = ask(model=model, messages=messages, max_tokens=100, temperature=0, stop=["France"])
    assert stopped.choices[0].finish_reason == "stop"
    assert "France" not in stopped.choices[0].message.content
    assert ended.choices[0].message.content.startswith(stopped.choices[0].message.content)


def test_seed_and_samples(client, model):
    options = {"model": model, "prompt": "Once upon a time", "max_tokens": 10, "temperature": 1.0, "n": 3}
    first = client.completions.create(seed=1, **options)
    again = client.completions.create(seed=1, **options)
    other = client.completions.create(seed=2, **options)
    texts = [choice.text for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) > 1
    # Rounding may change a sampled token once in thousands of times: one of the three texts may differ.
    assert sum(text == choice.text for text, choice in zip(texts, again.choices, strict=True)) >= 2
    assert sum(text == choice.text for text, choice in zip(texts, other.choices, strict=True)) <= 1


def test_logprobs(client, model):
    chat = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 6, "temperature": 0}
    whole = client.chat.completions.create(**chat, logprobs=True).choices[0]
    tokens = whole.logprobs.content
    assert len(tokens) == 6
    assert all(token.logprob <= 0 for token in tokens)
    assert "".join(token.token for token in tokens) == whole.message.content
    stream = client.chat.completions.create(**chat, logprobs=True, stream=True)
    parts = [c.choices[0].logprobs for c in stream if c.choices and c.choices[0].logprobs]
    streamed = [token for part in parts for token in part.content]
    assert [token.token for token in streamed] == [token.token for token in tokens]
    with pytest.raises(openai.BadRequestError, match="top_logprobs=2 is not supported") as refused:  # by OpenVINO
        client.chat.completions.create(**chat, logprobs=True, top_logprobs=2)
    assert refused.value.param == "top_logprobs"
    assert client.chat.completions.create(**chat).choices[0].logprobs is None
    text = client.completions.create(model=model, prompt="The sky is", max_tokens=4, temperature=0, logprobs=0)
    assert len(text.choices[0].logprobs.token_logprobs) == 4
    assert "".join(text.choices[0].logprobs.tokens) == text.choices[0].text


def test_errors_arrive_as_the_exceptions_of_the_client(client, model, server):
    with pytest.raises(openai.BadRequestError, match=r"\d+ tokens, and the model's context holds \d+"):
        client.completions.create(model=model, prompt="word " * 9000)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model=model, prompt="x", temperature=5)
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        client.completions.create(model="gpt-9", prompt="x")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0).models.list()
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(model=model, prompt="x" * 2_000_000)
    assert caught.value.status_code == 413


def test_extreme_sampling_does_not_kill_the_engine(client, model):
    extremes = [
        {"temperature": 1e-9},
        {"temperature": 0.01, "top_p": 1e-9},
        {"temperature": 2, "extra_body": {"top_k": 1, "min_p": 0.99, "repetition_penalty": 2.0}},
        {"temperature": 2, "presence_penalty": -2, "frequency_penalty": -2, "extra_body": {"repetition_penalty": 0.01}},
        {"temperature": 1, "extra_body": {"min_tokens": 1000, "ignore_eos": True}},
        {"temperature": 1, "top_p": 1, "extra_body": {"min_p": 0.0, "top_k": 1 << 30}},
    ]
    for options in extremes:
        answer = client.completions.create(model=model, prompt="x", max_tokens=3, **options)
        assert answer.usage.completion_tokens <= 3
    assert client.completions.create(model=model, prompt="", max_tokens=2).usage.completion_tokens == 2


def test_concurrent_requests_get_the_answers_of_single_ones(server, model, smollm2):
    async def ask_all(prompts: list[str]) -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, timeout=120) as many:
            options = {"model": model, "max_tokens": 8, "temperature": 0}
            answers = await asyncio.gather(*[many.completions.create(prompt=p, **options) for p in prompts])
        return [answer.choices[0].text for answer in answers]

    prompts = [f"{n} and {n} make" for n in range(12)]
    together = asyncio.run(ask_all(prompts))
    alone = [asyncio.run(ask_all([prompt]))[0] for prompt in prompts]
    assert_same_texts_until_ties(smollm2, prompts, together, alone)


def test_langchain(server, model, smollm2, chat_ids):
    chat = ChatOpenAI(model=model, base_url=f"{server.url}/v1", api_key=KEY, temperature=0, max_tokens=24)
    answer = chat.invoke([HumanMessage(QUESTION)])
    assert "Paris" in answer.content
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.usage_metadata["total_tokens"] == sum(
        answer.usage_metadata[name] for name in ("input_tokens", "output_tokens")
    )
    pieces = list(chat.stream(QUESTION))
    assert_same_text_until_tie(smollm2, chat_ids, "".join(piece.content for piece in pieces), answer.content)
    assert len(pieces) > 4
    assert "France" not in chat.bind(stop=["France"]).invoke(QUESTION).content
    for message in chat.batch([QUESTION, QUESTION]):
        assert_same_text_until_tie(smollm2, chat_ids, message.content, answer.content)
    with pytest.raises(openai.AuthenticationError):
        ChatOpenAI(model=model, base_url=f"{server.url}/v1", api_key="wrong", max_retries=0).invoke("x")


def test_record(server):
    answer = httpx.post(
        f"{server.url}/v1/records",
        json={"question": "What is two and two?"},
        headers={"Authorization": f"Bearer {KEY}"},
        timeout=120,
    ).json()
    assert answer["prompt"] == "Question: What is two and two?\n\nAnswer: Let's think step by step."
    assert answer["generated_text"]
    assert answer["error"] is None


def test_a_dead_engine_is_replaced_and_its_requests_get_an_error(server, client, model):
    """The last test: it kills the engine."""
    stream = client.completions.create(
        model=model, prompt="x", max_tokens=500, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    engines = named(server.process.pid, "hfray.engines.process")
    assert len(engines) == 1
    engines[0].kill()
    with pytest.raises(openai.APIError, match="the engine died"):
        list(stream)
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            client.completions.create(model=model, prompt="x", max_tokens=2)
            break
        except openai.APIStatusError as error:
            assert error.status_code in (500, 503)  # noqa: PT017
            assert time.monotonic() < deadline
            time.sleep(0.2)
