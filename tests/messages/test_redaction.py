"""What counts as a secret, and what is shown instead."""

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.errors import SourceError, StoreError, described
from lightning_lance.format import lance_io
from lightning_lance.messages import redaction
from lightning_lance.messages.redaction import (
    has_secret,
    hidden_values,
    in_one_line,
    is_secret_name,
    public_url,
    redacted,
    remember_options,
    remember_url,
    shown_cause,
)


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(redaction, "_known", set())


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("https://user:pa%2Fss@host:8/a/b.parquet", "https://host:8/a/b.parquet"),
        ("https://token@host/a", "https://host/a"),
        ("https://host/a?X-Amz-Signature=1&X-Amz-Date=2&versionId=3", "https://host/a?versionId=3"),
        ("https://host/a?part=1&sv=2&se=3&sig=4%3D", "https://host/a?part=1"),
        ("https://host/a?Expires=1&Signature=2&Key-Pair-Id=3&Policy=4", "https://host/a"),
        ("https://host/a?AWSAccessKeyId=1&Expires=2&Signature=3", "https://host/a"),
        ("https://host/a?GoogleAccessId=1&Expires=2&Signature=3", "https://host/a"),
        ("https://host/a?token=1;file=b", "https://host/a?file=b"),
        ("https://host/a?b=hf_abcdefghijklmnopqrstuvwxyz", "https://host/a"),
        ("https://host/a#access_token=1", "https://host/a"),
        ("https://host/a?api%5Fkey=1", "https://host/a"),
        ("s3://key:secret@bucket/a/*.parquet", "s3://bucket/a/*.parquet"),
        ("zip://a.jsonl::https://u:p@host/b.zip?sig=1", "zip://a.jsonl::https://host/b.zip"),
        ("az://container/store.lance?sv=1&sig=2", "az://container/store.lance"),
    ],
)
def test_a_url_without_its_secrets(url: str, public: str):
    assert public_url(url) == public
    assert public_url(public) == public
    assert has_secret(url)
    # The same for a URL in a sentence.
    assert redacted(f"Cannot read {url!r} ({url}), try again.") == f"Cannot read {public!r} ({public}), try again."


@pytest.mark.parametrize(
    "place",
    [
        "data/x.lance",
        "hf://datasets/owner/name@main/data/*.parquet",
        "https://host/get?file=a.parquet&version=2&sv=1&expires=never",
        "https://host/get?key=folder/a.parquet",
        "https://host/a?author=me&max_tokens=5&tokenizer=gpt2",
        "https://host/a?",
        "s3://bucket/a@b/train-0?.parquet",
        "local?token=1",
        "C:\\data\\x.lance",
    ],
)
def test_what_has_no_secret_stays_as_it_is(place: str):
    assert public_url(place) == place
    assert redacted(f"at {place!r}.") == f"at {place!r}."


_WORD = st.text(string.ascii_letters + string.digits, min_size=8, max_size=20)


@given(host=_WORD, path=_WORD, user=_WORD, password=_WORD, signature=_WORD)
def test_a_new_signature_is_the_same_url(host: str, path: str, user: str, password: str, signature: str):
    plain = f"https://{host}/{path}?part=1"
    assert public_url(f"https://{user}:{password}@{host}/{path}?part=1&X-Amz-Signature={signature}") == plain


@given(value=st.text(min_size=9, max_size=40).map(lambda text: f"{text}7"), name=_WORD)
def test_no_option_is_shown_whatever_its_name(value: str, name: str):
    options = {name: value, "client_kwargs": {name: {"deep": value}}}
    assert hidden_values(options) == {name: "***", "client_kwargs": {name: {"deep": "***"}}}
    remember_options({"other": value})
    if redaction.is_harmless_option(name) or not value.strip("*"):
        return
    assert value not in redacted(f"before {value} after").replace("***", "")


def test_what_is_remembered_is_hidden_in_every_spelling():
    remember_options(
        {"account_key": "a/b+c==", "client_kwargs": {"endpoint_url": "http://u:geheim@host", "x": ["Listed"]}}
    )
    remember_url("https://me:p%40ss@host/a?token=s%2Fecret")
    told = redacted("a/b+c== a%2Fb%2Bc%3D%3D geheim Listed p@ss p%40ss s/ecret http://host us-east-1 ReListed")
    assert told == "*** *** *** *** *** *** *** http://host us-east-1 ReListed"


def test_what_is_needed_in_messages_stays():
    remember_options(
        {"aws_region": "eu-central-1", "endpoint_url": "http://host:9000", "anon": True, "allow_http": "true"}
    )
    assert redacted("eu-central-1 http://host:9000 true") == "eu-central-1 http://host:9000 true"


def test_words_are_no_secrets_unless_their_name_says_so():
    remember_options({"cache_type": "bytes", "password": "correct"})
    assert redacted("1,000 bytes, correct, incorrect") == "1,000 bytes, ***, incorrect"


def test_secrets_of_the_environment_are_hidden(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "a-token-of-mine")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a/secret/of/mine")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/home/me/key.json")
    told = redacted("Illegal header b'Bearer a-token-of-mine\\n', a/secret/of/mine, /home/me/key.json")
    assert told == "Illegal header b'Bearer ***\\n', ***, /home/me/key.json"


def test_what_object_stores_repeat_is_hidden():
    answer = "<Error><Code>SignatureDoesNotMatch</Code><AWSAccessKeyId>AKID</AWSAccessKeyId><StringToSign>AWS4"
    assert redacted(answer) == "<Error><Code>SignatureDoesNotMatch</Code>"
    assert "Credential" not in redacted("Authorization: AWS4-HMAC-SHA256 Credential=AK/x, Signature=abcdef")


@pytest.mark.parametrize(
    "name", ["key", "aws_secret_access_key", "Account-Key", "HF_TOKEN", "sas_token", "password", "db_password"]
)
def test_names_of_secrets(name: str):
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name", ["eos_token", "prefix_token", "max_tokens", "min_tokens", "tokenizer", "keys", "author", "monkey"]
)
def test_names_of_other_things(name: str):
    assert not is_secret_name(name)


def test_all_errors_are_without_secrets():
    remember_options({"secret": "SECRETKEY"})
    error = SourceError("SECRETKEY at https://u:p@host/a?sig=1: check it.")
    assert str(error) == "*** at https://host/a: check it."
    assert "SECRETKEY" not in repr(error)
    assert in_one_line("SECRETKEY " * 100, 50).count("***") == 12
    assert shown_cause(ValueError("plain")) is not None
    outer = ValueError("plain")
    outer.__cause__ = ValueError("https://u:p@host")
    assert shown_cause(outer) is None


PEM = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEFAASC\n-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    "secret", [PEM, json.dumps({"private_key": PEM}), json.dumps({"k": PEM}, indent=1), "p\"a's\\s w\xf6rd"]
)
@pytest.mark.parametrize("way", ["option", "environment"])
def test_a_secret_of_odd_signs_is_hidden_however_it_is_spelled(secret: str, way: str, monkeypatch: pytest.MonkeyPatch):
    if way == "option":
        redaction.remember_options({"google_service_account_key": secret})
    else:
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", secret)
    spelled = [secret, repr(secret), repr({"key": secret}), json.dumps([secret]), " ".join(secret.split())]
    for text in [*spelled, *secret.splitlines()]:
        for told in (str(StoreError(f"Not understood: {text}")), redaction.in_one_line(text, 5000)):
            assert not any(part in told for part in ("MIIEvQ", "hkiG9w", 'p"a', "a's", "\xf6rd", "u00f6rd"))


def test_half_a_secret_is_not_told():
    """A message is cut after its secrets are hidden."""
    secret = "S3cr3t" * 5
    redaction.remember_options({"password": secret})
    for length in range(60, 100):
        assert "S3cr" not in described("x" * length + secret)
    for length in range(80, 150, 5):
        with pytest.raises(StoreError) as raised, lance_io.no_panic():
            raise BaseException("x" * (length + 140) + " " + secret)  # like a panic of Lance
        assert "S3cr" not in str(raised.value)


@pytest.mark.parametrize("way", ["option", "environment"])
def test_the_key_of_a_service_account_is_hidden_without_the_rest_too(way: str, monkeypatch: pytest.MonkeyPatch):
    account = json.dumps({"type": "service_account", "private_key": PEM, "auth": {"refresh_token": "HUSHTOKEN"}})
    if way == "option":
        redaction.remember_options({"google_service_account_key": account})
    else:
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", account)
    assert redacted(f"no service_account: {PEM}") == f"no service_account: {redaction.HIDDEN}"
    assert redacted("in one line: " + " ".join(PEM.split())) == f"in one line: {redaction.HIDDEN}"
    assert redacted("a HUSHTOKEN") == f"a {redaction.HIDDEN}"


def test_names_of_accounts_may_be_shown_and_kept():
    for name in ("azure_storage_account_name", "account_name", "azure_storage_endpoint", "aws_region"):
        assert redaction.is_harmless_option(name)
    assert not redaction.is_harmless_option("azure_storage_account_key")
