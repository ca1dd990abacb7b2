"""Secrets are recognized by name, refused in URLs, and never written down."""

from __future__ import annotations

import pytest

from hfray.config.backend import FakeBackend, ModelSettings
from hfray.config.secrets import check_no_credentials, credentials_in, is_secret_name, to_plain


@pytest.mark.parametrize(
    "name",
    [
        "token",
        "use_auth_token",
        "X-Amz-Security-Token",
        "X-Amz-Signature",
        "X-Goog-Credential",
        "AWSAccessKeyId",
        "access_key",
        "secret_key",
        "client_secret",
        "password",
        "api_key",
        "api_keys",
        "apikey",
        "credentials",
        "sig",
    ],
)
def test_secret_names(name):
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name", ["max_new_tokens", "batch_tokens", "eos_token_id", "tokenizer", "key", "row_id", "scheme", "design"]
)
def test_names_that_are_not_secret(name):
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("s3://AKIA:hush@bucket/x", "a password"),
        ("s3://bucket/x?secret_key=hush", "the secret `secret_key`"),
        ("https://host/x?sv=1&sig=hush", "the secret `sig`"),
        ("s3://bucket/x?endpoint_override=host:1&scheme=http", None),
        ("abfss://box@account.dfs.core.windows.net/a", None),
        ("gs://anonymous@bucket/a", None),
        ("folder/with:colon@sign", None),
    ],
)
def test_credentials_in_urls(url, found):
    assert credentials_in(url) == found


def test_a_credential_is_refused_and_not_repeated():
    with pytest.raises(ValueError, match=r"input\.path: the URL contains a password.*AWS_SECRET_ACCESS_KEY") as caught:
        check_no_credentials("input.path", ["in.jsonl", "s3://me:hush@bucket/x"])
    assert "hush" not in str(caught.value)


def test_plain_settings_redact_secrets_at_every_depth():
    model = ModelSettings(source="a/b", kwargs={"token": "hush", "max_tokens": 7, "nested": [{"api_key": "hush"}]})
    plain = to_plain(model)
    assert plain["kwargs"] == {"token": "***", "max_tokens": 7, "nested": [{"api_key": "***"}]}
    assert to_plain(FakeBackend(name="fake"))["name"] == "fake"
