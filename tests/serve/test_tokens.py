"""/tokenize and /detokenize: the model's own tokens, without a generation."""

from __future__ import annotations

import pytest

from hfray.serve.replica import Service
from tests.serve.test_api import MESSAGES, ask, make


@pytest.fixture(scope="module")
def service() -> Service:
    return make("backend.context_length=400")


def test_tokens_and_text_are_the_engines_own(service):
    tokenizer = service.worker.loop.engine.tokenizer
    found = ask(service, "/tokenize", {"prompt": "Hello, world"}).json()
    assert found["tokens"] == tokenizer.encode("Hello, world")
    assert (found["count"], found["max_model_len"]) == (len(found["tokens"]), 400)
    assert ask(service, "/detokenize", {"tokens": found["tokens"]}).json() == {"prompt": "Hello, world"}


def test_a_chat_has_the_tokens_of_its_rendered_prompt(service):
    tokenizer = service.worker.loop.engine.tokenizer
    found = ask(service, "/tokenize", {"messages": MESSAGES}).json()
    assert found["tokens"] == tokenizer.encode(tokenizer.chat(MESSAGES), add_special_tokens=False)


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("/tokenize", {}, "prompt or messages"),
        ("/tokenize", {"prompt": "x", "messages": MESSAGES}, "prompt or messages"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [1 << 40]}, "tokens"),
        ("/detokenize", {"tokens": "x"}, "tokens"),
    ],
)
def test_a_bad_request_is_named(service, path, body, named):
    response = ask(service, path, body)
    assert response.status_code == 400
    assert named in response.json()["error"]["message"]


def test_another_model_is_not_found(service):
    assert ask(service, "/tokenize", {"model": "other", "prompt": "x"}).status_code == 404


def test_an_empty_text_has_no_tokens_and_no_tokens_have_no_text(service):
    assert ask(service, "/tokenize", {"prompt": "", "add_special_tokens": False}).json()["tokens"] == []
    assert ask(service, "/detokenize", {"tokens": []}).json() == {"prompt": ""}


def test_ping_and_version(service):
    assert ask(service, "/ping", method="GET").json() == ask(service, "/ping").json() == {"status": "ok"}
    assert ask(service, "/version", method="GET").json()["version"]
