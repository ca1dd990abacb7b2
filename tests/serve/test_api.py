"""The HTTP API of one replica in this process, without Ray: requests, errors, limits, keys, records, metrics."""

from __future__ import annotations

import asyncio
import json
import logging

import httpx
import pytest

from hfray.batch.job import run_batch
from hfray.config.compose import load_settings
from hfray.config.serve import ServeSettings
from hfray.errors import SettingsError
from hfray.inference.validator import validator_of
from hfray.response import ResponseFormat
from hfray.serve.api import build_api
from hfray.serve.keys import ApiKeys
from hfray.serve.replica import Service
from tests.conftest import batch_settings
from tests.schemas import REVIEW, chain

FAKE = ("conf=fake", "model.source=fake-model")
MESSAGES = [{"role": "user", "content": "x"}]


def settings(*overrides: str) -> ServeSettings:
    return load_settings([*FAKE, *overrides], ServeSettings)


def make(*overrides: str) -> Service:
    found = settings(*overrides)
    return Service(found, ApiKeys.read(found.serve))


def client(service: Service, host: str = "127.0.0.1") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(build_api(service))
    return httpx.AsyncClient(transport=transport, base_url=f"http://{host}", timeout=30)


def ask(service: Service, path: str, body=None, method: str = "POST", host: str = "127.0.0.1", **options):
    """One request; `body` is sent as JSON unless `options` contain the content."""

    async def call() -> httpx.Response:
        async with client(service, host) as http:
            if body is not None:
                options["json"] = body
            return await http.request(method, path, **options)

    return asyncio.run(call())


def events(response: httpx.Response) -> list:
    lines = [line[6:] for line in response.text.split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@pytest.fixture(scope="module")
def service() -> Service:
    return make("backend.context_length=400", "backend.fail_on=FAIL", "serve.max_request_bytes=20000")


@pytest.fixture(scope="module")
def named() -> Service:
    """A server without keys that has another name and allows another web origin."""
    return make("serve.hosts=[my.name]", "serve.cors_origins=['https://app.example']")


def test_completion(service):
    answer = ask(service, "/v1/completions", {"prompt": "hello", "max_tokens": 5}).json()
    assert answer["object"] == "text_completion"
    assert answer["model"] == "fake-model"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
    again = ask(service, "/v1/completions", {"prompt": "hello", "max_tokens": 5}).json()
    assert again["choices"] == answer["choices"]


def test_prompts_and_samples_are_numbered_in_order(service):
    body = {"prompt": ["one", "two"], "n": 3, "temperature": 1.0, "seed": 4}
    choices = ask(service, "/v1/completions", body).json()["choices"]
    assert [choice["index"] for choice in choices] == list(range(6))
    assert len({choice["text"] for choice in choices[:3]}) > 1
    assert ask(service, "/v1/completions", body).json()["choices"] == choices
    other = ask(service, "/v1/completions", {**body, "seed": 5}).json()["choices"]
    assert other != choices


def test_usage_counts_a_prompt_once(service):
    answer = ask(service, "/v1/completions", {"prompt": ["one", "three"], "n": 2, "max_tokens": 4}).json()
    assert answer["usage"] == {"prompt_tokens": 8, "completion_tokens": 16, "total_tokens": 24}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_stream_is_the_answer_in_parts(path):
    service = make("backend.tokens_per_step=3", "backend.step_seconds=0.02")
    body = {"prompt": "hello"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "hello"}]}
    body |= {"n": 2, "stop": ["zebra"]}
    whole = ask(service, path, body).json()
    response = ask(service, path, {**body, "stream": True, "stream_options": {"include_usage": True}})
    assert response.headers["content-type"].startswith("text/event-stream")
    parts = events(response)
    assert parts[-1]["choices"] == []
    assert parts[-1]["usage"] == whole["usage"]
    for choice in whole["choices"]:
        mine = [part["choices"][0] for part in parts[:-1] if part["choices"][0]["index"] == choice["index"]]
        text = "".join(part.get("text") or part.get("delta", {}).get("content") or "" for part in mine)
        assert text == choice.get("text", choice.get("message", {}).get("content"))
        assert [part["finish_reason"] for part in mine if part["finish_reason"]] == [choice["finish_reason"]]
        assert len(mine) > 3


def test_stop_strings(service):
    text = ask(service, "/v1/completions", {"prompt": "hello"}).json()["choices"][0]["text"]
    word = text.split()[2]
    choice = ask(service, "/v1/completions", {"prompt": "hello", "stop": word}).json()["choices"][0]
    assert choice["text"] == text[: text.index(word)]
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "prompt"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "x", "max_tokns": 3}, "max_tokns"),
        ({"prompt": "x", "temperature": 3}, "temperature"),
        ({"prompt": "x", "echo": True}, "echo"),
        ({"prompt": "x", "stop": [""]}, "stop"),
        ({"prompt": "x", "n": 129}, "n"),
        ({"prompt": ["x"] * 100, "n": 2}, "200 completions"),
        ({"prompt": "FAIL"}, "told to fail"),
        ({"prompt": "x" * 500}, "500 tokens, and the model's context holds 400"),
        ({"prompt": "x" * 500, "stream": True}, "500 tokens, and the model's context holds 400"),
    ],
)
def test_bad_requests_say_what_is_wrong(service, body, message):
    response = ask(service, "/v1/completions", body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"
    assert service.admission.taken == 0


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/completions", {"prompt": "x", "logprobs": 2}, "logprobs"),
        ("/v1/chat/completions", {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2}, "top_logprobs"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_an_engine_without_the_likeliest_tokens_refuses_them_by_name(service, monkeypatch, path, body, field, stream):
    monkeypatch.setattr(service.worker.loop.engine, "top_logprobs", False)
    response = ask(service, path, body | {"stream": stream})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field
    assert f"{field}=2 is not supported" in response.json()["error"]["message"]


def test_neutral_values_of_unsupported_fields_are_accepted(service):
    body = {"prompt": "x", "echo": False, "best_of": None, "user": "me", "logit_bias": {}, "tool_choice": "none"}
    assert ask(service, "/v1/completions", body).status_code == 200


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [("/nothing", "GET", 404), ("/v1/completions", "GET", 405), ("/v1/models/other", "GET", 404)],
)
def test_errors_have_the_format_of_openai(service, path, method, status):
    response = ask(service, path, method=method)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_another_model_is_not_found(service):
    response = ask(service, "/v1/completions", {"prompt": "x", "model": "gpt-9"})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 5000, b'{"prompt": ' + b"9" * 5000 + b"}"])
def test_a_body_that_is_not_json_is_refused(service, content):
    headers = {"content-type": "application/json"}
    response = ask(service, "/v1/completions", content=content, headers=headers)
    assert response.status_code == 400
    assert "error" in response.json()


def test_a_lone_surrogate_is_not_a_server_error(service):
    content = rb'{"prompt": "a \ud800 b"}'
    headers = {"content-type": "application/json"}
    assert ask(service, "/v1/completions", content=content, headers=headers).status_code == 200
    assert ask(service, "/v1/records", content=rb'{"question": "\ud800"}', headers=headers).status_code == 400


def test_size_limit_with_and_without_a_length(service):
    body = {"prompt": "x" * 30_000}
    response = ask(service, "/v1/completions", body)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "too_large"

    async def chunks():
        for _ in range(10):
            yield b'"' + b"x" * 5000

    response = ask(service, "/v1/completions", content=chunks(), headers={"content-type": "application/json"})
    assert response.status_code == 413
    assert service.admission.taken == 0


def test_keys(tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_KEYS", "one, two")
    service = make("serve.api_keys=env:TEST_KEYS")
    body = {"prompt": "x"}
    for header in (None, "Bearer wrong", "one", "Basic one", "Bearer "):
        response = ask(service, "/v1/completions", body, headers={"authorization": header} if header else {})
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
    for key in ("one", "two"):
        assert ask(service, "/v1/completions", body, headers={"authorization": f"Bearer {key}"}).status_code == 200
    assert ask(service, "/metrics", method="GET").status_code == 401
    assert ask(service, "/health", method="GET").status_code == 200
    path = tmp_path / "keys"
    path.write_text("three\n\nfour\n")
    service = make(f"serve.api_keys=file:{path}")
    assert ask(service, "/v1/models", method="GET", headers={"authorization": "Bearer four"}).status_code == 200


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["serve.host=0.0.0.0"], "serve.allow_public=true"),
        (["serve.api_keys=sk-secret"], "env:NAME"),
        (["serve.replicas=[3,1]"], "serve.replicas"),
        (["serve.replicas=0"], "serve.replicas"),
        (["serve.prot=1"], "Did you mean serve.port"),
        (["serve.port=99999"], "serve.port"),
    ],
)
def test_unusable_settings_are_refused(overrides, message):
    with pytest.raises(SettingsError) as caught:
        settings(*overrides)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_without_keys_only_requests_of_this_machine_are_answered(service):
    assert ask(service, "/v1/models", method="GET", host="10.1.2.3").status_code == 403
    assert ask(
        make("serve.host=0.0.0.0", "serve.allow_public=true"), "/v1/models", method="GET", host="10.1.2.3"
    ).is_success


def test_requests_beyond_the_queue_are_refused_immediately():
    service = make("backend.batch_size=1", "serve.max_queue=2", "backend.step_seconds=0.2", "backend.tokens_per_step=4")

    async def burst() -> list[httpx.Response]:
        async with client(service) as http:
            return await asyncio.gather(*[http.post("/v1/completions", json={"prompt": f"p{i}"}) for i in range(8)])

    responses = asyncio.run(burst())
    assert sorted(response.status_code for response in responses) == [200] * 3 + [503] * 5
    soonest = min(response.elapsed for response in responses if response.is_success)
    for response in responses:
        if response.status_code == 503:
            assert int(response.headers["retry-after"]) >= 1
            assert response.json()["error"]["code"] == "overloaded"
            assert response.elapsed < soonest
    assert service.admission.taken == 0


def test_a_cancelled_request_frees_the_engine():
    service = make("backend.batch_size=1", "backend.step_seconds=0.2", "backend.tokens_per_step=1")

    async def leave() -> None:
        async with client(service) as http:
            request = asyncio.create_task(http.post("/v1/completions", json={"prompt": "x", "ignore_eos": True}))
            while not service.worker.loop.stats.running:
                assert not request.done()
                await asyncio.sleep(0.001)
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)
            steps = service.worker.loop.stats.steps
            while service.worker.loop.stats.running:
                await asyncio.sleep(0.001)
            assert service.worker.loop.stats.steps - steps <= 1

    asyncio.run(leave())
    assert service.admission.taken == 0


def test_a_hung_engine_is_detected_and_its_requests_get_an_error():
    service = make("backend.hang_on=HANG", "workers.step_timeout=0.3")

    async def hang() -> httpx.Response:
        async with client(service) as http:
            request = asyncio.create_task(http.post("/v1/completions", json={"prompt": "HANG"}))
            while (await http.get("/health")).status_code != 503:
                assert not request.done()
                await asyncio.sleep(0.05)
            assert (await http.post("/v1/completions", json={"prompt": "x"})).status_code == 503
            return await request

    response = asyncio.run(hang())
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "engine_died"


def test_a_stopping_server_refuses_new_requests_and_ends_long_streams_with_an_error():
    service = make("backend.step_seconds=0.05", "backend.tokens_per_step=1")
    body = {"prompt": "x", "max_tokens": 5000, "ignore_eos": True}

    async def stop() -> tuple[list[httpx.Response], httpx.Response]:
        async with client(service) as http:
            running = [
                asyncio.create_task(http.post("/v1/completions", json={**body, "stream": stream}))
                for stream in (True, False)
            ]
            while service.worker.loop.stats.running < 2:
                await asyncio.sleep(0.001)
            draining = asyncio.create_task(service.drain(0.5))
            await asyncio.sleep(0)
            assert (await http.get("/health")).status_code == 503
            late = await http.post("/v1/completions", json=body)
            await draining
            assert all(request.done() for request in running)
            return await asyncio.gather(*running), late

    (stream, whole), late = asyncio.run(stop())
    assert late.status_code == 503
    assert late.json()["error"]["code"] == "stopping"
    assert late.headers["retry-after"]
    last = [line for line in stream.text.split("\n\n") if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "stopped"
    assert whole.status_code == 503
    assert whole.json()["error"]["code"] == "stopped"
    assert service.admission.taken == 0


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:8000"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"origin": "http://localhost:3000"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "my.name:8000", "origin": "http://my.name:8000"}, 200),
        ({"origin": "https://app.example"}, 200),
    ],
)
def test_without_keys_foreign_names_are_refused(named, headers, status):
    """A web page whose name resolves to 127.0.0.1 makes the browser send its own name (DNS rebinding)."""
    assert ask(named, "/v1/models", method="GET", headers=headers).status_code == status
    assert ask(named, "/v1/completions", {"prompt": "x"}, headers=headers).status_code == status


def test_cors_is_off_unless_set(service, named):
    headers = {"origin": "https://app.example", "access-control-request-method": "POST"}
    allowed = "access-control-allow-origin"
    assert allowed not in ask(service, "/v1/completions", method="OPTIONS", headers=headers).headers
    answer = ask(named, "/v1/completions", method="OPTIONS", headers=headers)
    assert answer.headers[allowed] == "https://app.example"
    foreign = {**headers, "origin": "https://evil.example"}
    assert allowed not in ask(named, "/v1/completions", method="OPTIONS", headers=foreign).headers


@pytest.mark.ray
@pytest.mark.parametrize("temperature", [0, 1])
def test_record_gives_the_row_that_the_batch_job_writes(shared_ray, tmp_path, temperature):
    import pyarrow.parquet as pq

    records = [
        {"id": 7, "question": "hi", "tags": ["a", "b"], "more": {"x": 1.5}},
        {"id": 8, "question": None, "tags": [], "more": {"x": 2.5}},
    ]
    source, out = tmp_path / "in.jsonl", tmp_path / "out"
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    sampling = f"generation.temperature={temperature}"  # 1: sampled, with a seed from the row's id
    job = [f"input.path={source}", f"output.path={out}", "input.id_column=id", "errors.max_fraction=1"]
    run_batch(batch_settings(*FAKE, sampling, *job))
    expected = sorted(pq.read_table(out).to_pylist(), key=lambda row: row["row_id"])
    online = make("serve.id_column=id", sampling)
    for record, row in zip(records, expected, strict=True):
        assert ask(online, "/v1/records", record).json() == row
        parts = events(ask(online, "/v1/records?stream=true", record))
        assert parts[-1] == {"row": row}
        assert "".join(part["text"] for part in parts[:-1]) == (row["generated_text"] or "")


def test_record_that_cannot_be_a_row(service):
    response = ask(service, "/v1/records", {"question": "x", "prompt": "y"})
    assert response.status_code == 400
    assert "'prompt'" in response.json()["error"]["message"]
    row = ask(service, "/v1/records", {"question": "x" * 500}).json()
    assert row["finish_reason"] == "error"
    assert "context holds 400" in row["error"]


def test_a_record_that_is_nested_too_deep_is_refused_before_it_runs(service):
    ask(service, "/v1/completions", {"prompt": "x"})  # behind it, the loop has counted the rows of earlier tests
    rows = service.worker.loop.stats.rows
    deep = json.loads("[" * 254 + "]" * 254)
    response = ask(service, "/v1/records", {"question": "x", "deep": deep})
    assert response.status_code == 400
    assert "nested deeper" in response.json()["error"]["message"]
    fine = json.loads("[" * 30 + "1" + "]" * 30)
    assert ask(service, "/v1/records", {"question": "x", "deep": fine}).json()["deep"] == fine
    assert service.worker.loop.stats.rows == rows + 1


def test_the_model_card_names_the_context(service):
    card = ask(service, "/v1/models", method="GET").json()["data"][0]
    assert card["max_model_len"] == 400
    assert card["prompt_columns"] == ["question"]


def test_metrics(service):
    ask(service, "/v1/completions", {"prompt": "x", "max_tokens": 3})
    text = ask(service, "/metrics", method="GET").text
    for name in (
        "hfray_requests_total",
        "hfray_generated_tokens_total",
        "hfray_prompt_tokens_total",
        "hfray_time_to_first_token_seconds_bucket",
        "hfray_time_per_output_token_seconds_bucket",
        "hfray_completions_waiting",
        "hfray_engine_occupancy_ratio",
    ):
        assert name in text
    assert 'path="/v1/completions"' in text


def test_no_prompt_in_the_logs(service, caplog, monkeypatch):
    prompt = "the secret prompt"

    def fail(*_: object) -> None:
        raise RuntimeError(prompt)

    monkeypatch.setattr("hfray.serve.answers.text_completion", fail)
    with caplog.at_level(logging.DEBUG):
        response = ask(service, "/v1/completions", {"prompt": prompt})
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text
    assert "secret" not in response.text


# --- answers that must have a form -----------------------------------------------------------------------------


def json_schema(schema: object) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_an_answer_has_the_form_that_its_request_asks_for(service, path):
    body = {"messages": MESSAGES} if "chat" in path else {"prompt": "x"}
    body |= {"response_format": json_schema(REVIEW), "max_tokens": 200}
    (choice,) = ask(service, path, body).json()["choices"]
    text = choice["message"]["content"] if "chat" in path else choice["text"]
    assert validator_of(ResponseFormat.of_schema(REVIEW)).check(text, "stop")[1] is None
    assert choice["finish_reason"] == "stop"
    chosen = ask(service, path, body | {"response_format": None, "structured_outputs": {"choice": ["red", "blue"]}})
    (choice,) = chosen.json()["choices"]
    assert (choice["message"]["content"] if "chat" in path else choice["text"]) in ("red", "blue")


def test_an_answer_that_reaches_its_limit_is_cut_and_no_error(service):
    body = {"messages": MESSAGES, "response_format": json_schema(REVIEW), "max_tokens": 10}
    (choice,) = ask(service, "/v1/chat/completions", body).json()["choices"]
    assert (choice["finish_reason"], len(choice["message"]["content"])) == ("length", 10)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "objekt"}, "cannot be compiled"),
        ({"$ref": "https://example.org/schema"}, "does not name a part"),
        ({"enum": ["x" * 12_000] * 2}, None),
        ({"type": "string", "maxLength": 1_000_000}, "at most 4096"),
        (chain(400), "more than 200 deep"),
    ],
)
def test_a_hostile_schema_is_an_invalid_request_and_the_engine_runs_on(schema, words):
    service = make("serve.max_request_bytes=200000")
    body = {"messages": MESSAGES, "response_format": json_schema(schema)}
    response = ask(service, "/v1/chat/completions", body)
    assert response.status_code == (200 if words is None else 400)
    assert words is None or words in response.json()["error"]["message"]
    assert ask(service, "/v1/chat/completions", {"messages": MESSAGES}).status_code == 200


def test_a_record_has_the_typed_columns_of_the_job():
    service = make(f"response.schema={json.dumps(REVIEW)}", "generation.max_new_tokens=200")
    row = ask(service, "/v1/records", {"question": "x"}).json()
    assert row["response"] == json.loads(row["generated_text"])
    assert row["num_attempts"] == 1
    plain = ask(service, "/v1/chat/completions", {"messages": MESSAGES}).json()["choices"][0]["message"]["content"]
    assert not plain.startswith("{")  # the server's form is for records
    assert ask(service, "/v1/records", {"question": "x", "response": 1}).status_code == 400
